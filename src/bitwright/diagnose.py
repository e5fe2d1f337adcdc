"""The doctor called to any model: a directory, a file, or the hub's, of which no weight is fetched."""

from __future__ import annotations

import os
from pathlib import Path

from bitwright.checkpoint.hub import is_hub_id
from bitwright.doctor.doctor import examine, examine_on_hub
from bitwright.errors import Finding
from bitwright.host.progress import Reporter


def doctor(model: str | Path, weights: bool = False, reporter: Reporter | None = None) -> list[Finding]:
    """Look for silent mistakes in a model's configuration, tokenizer and headers.

    Args:
        model: A directory, a .gguf file, ``demo``, or a hub id, of which texts and headers are fetched.
        weights: Read every weight once, too.
        reporter: Shows progress. Default: nothing.

    Returns:
        What was found, the gravest first; each says what it saw, what is right, and what helps.

    Raises:
        BitwrightError: There is no such model.

    Example:
        >>> [finding.rule for finding in bitwright.doctor("demo")]  # doctest: +SKIP
        ['tokens/padding-is-end']
    """
    if is_hub_id(str(model)) and not weights:
        return examine_on_hub(str(model))
    return examine(place_of(model), weights, reporter)


def place_of(model: str | Path) -> Path:
    """The .gguf file that ``model`` names, or the directory that it lies in once it is fetched or unpacked."""
    from bitwright.checkpoint.open import local_directory  # loads torch, which a model on the hub does not need

    path = Path(os.path.expanduser(model))
    return path if path.suffix == ".gguf" and path.is_file() else local_directory(model)
