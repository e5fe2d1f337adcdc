"""Plain text that is on every Python installation: the language reference that ``help()`` shows."""

from __future__ import annotations

from functools import cache
from pydoc_data.topics import topics

DOCUMENTATION = "documentation"  # how it is asked for
SHORTEST = 40  # characters of a passage: shorter ones are in every text


def passages(text: str) -> list[str]:
    """The lines of ``text``, long ones cut into sentences, without their blanks and without short ones."""
    parts = (part.strip() for line in text.splitlines() for part in line.split(". "))
    return [part for part in parts if len(part) >= SHORTEST]


def documentation(part: int, parts: int) -> list[str]:
    """One text, the ``part``-th of ``parts`` of about one size that share no passage.

    Topics repeat each other, some as a whole, so those that share a passage stay together, and what is whole in another is
    left out.
    """
    sides: list[list[str]] = [[] for _ in range(parts)]
    for group in sorted(_groups(), key=lambda group: (-sum(map(len, group)), group)):
        min(sides, key=lambda side: sum(map(len, side))).extend(group)
    return ["\n\n".join(sorted(sides[part]))]


@cache
def _groups() -> tuple[tuple[str, ...], ...]:
    """The topics, those that share a passage together."""
    texts = sorted(set(topics.values()))
    known = [frozenset(passages(text)) for text in texts]
    groups: list[set[int]] = []
    for i, own in enumerate(known):
        if any(own <= other and (own < other or i > j) for j, other in enumerate(known) if i != j and own):
            continue
        touching = [group for group in groups if any(own & known[j] for j in group)]
        groups = [group for group in groups if group not in touching] + [{i}.union(*touching)]
    return tuple(tuple(texts[i] for i in sorted(group)) for group in groups)
