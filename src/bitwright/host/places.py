"""Where things are kept, and paths as they may be published (no torch)."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Where converted and downloaded models are kept: $BITWRIGHT_CACHE, or bitwright/ in the user's cache directory."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "bitwright"
    return Path(os.environ.get("BITWRIGHT_CACHE", default))


def without_place(word: str) -> str:
    """``word`` of a command, without the folders of this machine where it is an absolute path.

    >>> without_place("/home/someone/models/llama"), without_place("--workdir=/tmp/work"), without_place("models/llama")
    ('llama', '--workdir=work', 'models/llama')
    """
    option, equals, value = word.partition("=")
    if equals and option.startswith("--"):
        return f"{option}={without_place(value)}"
    return Path(word).name if word.startswith(("/", "~")) else word
