"""Where the names of points stand in a chart, so that none covers a point, a bar or another name (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LETTER, LINE = 6.4, 14.0  # pixels of a letter and of a line at 12 pixels
GAP, POINT = 9.0, 6.0  # between a point and its name; half a point


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Shared area."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return wide * high if wide > 0 and high > 0 else 0.0


@dataclass(frozen=True)
class Named:
    """A point at (x, y) with a bar from ``top`` to ``bottom``."""

    x: float
    y: float
    top: float
    bottom: float
    name: str


def place(
    points: Sequence[Named], width: float, height: float, others: Sequence[tuple[float, float]] = ()
) -> list[tuple[float, float]]:
    """For each point the left end and the middle line of its name, in pixels. ``others`` are points without a name.

    Greedy: names are placed one after the other, each at the nearest place that covers least.

    >>> place([Named(10, 50, 40, 60, "first"), Named(10, 50, 40, 60, "other")], 200, 100)
    [(19.0, 50), (19.0, 35.0)]
    """
    taken = [Box(p.x - POINT, min(p.top, p.y - POINT), p.x + POINT, max(p.bottom, p.y + POINT)) for p in points]
    taken += [Box(x - POINT, y - POINT, x + POINT, y + POINT) for x, y in others]
    found = []
    for point in points:
        long = LETTER * len(point.name)
        beside = (point.x + GAP, point.x - GAP - long)
        above, below = min(point.top, point.y - POINT) - LINE / 2 - 3, max(point.bottom, point.y + POINT) + LINE / 2 + 3
        places = [(x, point.y) for x in beside]
        places += [(point.x - long / 2, above), (point.x - long / 2, below)]
        places += [(x, point.y + sign * step * (LINE + 1)) for step in range(1, 7) for sign in (-1, 1) for x in beside]

        def cost(at: tuple[float, float], long: float = long) -> float:
            box = _box(at, long)
            outside = max(0.0, -box.left, box.right - width) + max(0.0, -box.top, box.bottom - height)
            return sum(box.overlap(other) for other in taken) + 100 * outside

        best = min(places, key=cost)  # of several that cover nothing the first, which is nearest
        taken.append(_box(best, long))
        found.append(best)
    return found


def _box(at: tuple[float, float], long: float) -> Box:
    return Box(at[0], at[1] - LINE / 2, at[0] + long, at[1] + LINE / 2)
