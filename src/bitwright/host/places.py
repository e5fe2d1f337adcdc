"""Where things are kept, and paths as they may be published (no torch)."""

from __future__ import annotations

import os
from pathlib import Path

from bitwright.errors import fail


def cache_dir() -> Path:
    """Where converted and downloaded models are kept: $BITWRIGHT_CACHE, or bitwright/ in the user's cache directory."""
    stated = os.environ.get("BITWRIGHT_CACHE")
    usual = os.environ.get("XDG_CACHE_HOME", "")
    place = Path(os.path.expanduser(stated or os.path.join(usual if os.path.isabs(usual) else "~/.cache", "bitwright")))
    if place.parts[:1] == ("~",):
        raise fail(
            "cache/no-home",
            "the cache directory",
            saw="HOME is not set, and this user has no home directory",
            wanted="a place for what is downloaded and converted",
            help="BITWRIGHT_CACHE=DIRECTORY before the command",
        )
    return place


def without_place(word: str) -> str:
    """``word`` of a command, without the folders of this machine where it is an absolute path.

    >>> without_place("/home/someone/models/llama"), without_place("--workdir=/tmp/work"), without_place("models/llama")
    ('llama', '--workdir=work', 'models/llama')
    """
    option, equals, value = word.partition("=")
    if equals and option.startswith("--"):
        return f"{option}={without_place(value)}"
    return Path(word).name if word.startswith(("/", "~")) else word
