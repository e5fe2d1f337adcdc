"""Plain text that is on every Python installation: the language reference that ``help()`` shows."""

from __future__ import annotations

from pydoc_data.topics import topics


def documentation(part: int, parts: int) -> list[str]:
    """Every ``parts``-th topic, starting at ``part``: disjoint texts, some of which have two names."""
    return sorted(set(topics.values()))[part::parts]
