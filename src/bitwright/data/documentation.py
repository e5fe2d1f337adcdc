"""Plain text that is on every Python installation: the language reference that ``help()`` shows."""

from __future__ import annotations

from pydoc_data.topics import topics

DOCUMENTATION = "documentation"  # how it is asked for


def documentation(part: int, parts: int) -> list[str]:
    """One text of every ``parts``-th topic, starting at ``part``: disjoint, since topics of two names count once."""
    return ["\n\n".join(sorted(set(topics.values()))[part::parts])]
