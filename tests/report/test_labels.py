"""Names in a chart cover no point, no bar and no other name where there is room."""

import itertools

from bitwright.report.labels import LETTER, LINE, POINT, Box, Named, place


def test_seven_points_close_together_have_seven_names_apart() -> None:
    rows = ((100, 30), (100, 32), (110, 30), (112, 31), (300, 100), (305, 104), (690, 290))
    points = [Named(x, y, y - 12, y + 12, f"the name of contender {i}") for i, (x, y) in enumerate(rows)]
    boxes = []
    for point, (left, middle) in zip(points, place(points, 700, 300), strict=True):
        boxes.append(Box(left, middle - LINE / 2, left + LETTER * len(point.name), middle + LINE / 2))
    assert not any(a.overlap(b) for a, b in itertools.combinations(boxes, 2))
    bars = [Box(p.x - POINT, p.top, p.x + POINT, p.bottom) for p in points]
    assert not any(box.overlap(bar) for box in boxes for bar in bars)
    assert all(box.left >= 0 and box.right <= 700 and box.top >= 0 and box.bottom <= 300 for box in boxes)
