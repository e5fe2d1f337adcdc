"""No words of libraries on the terminal: their warnings speak to programmers, and what matters of them is said by us."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",  # its warnings repeat what a model's files say, as they say it
    "TQDM_DISABLE": "1",  # bars of libraries; ours tell what there is to tell
}


def silence_libraries() -> None:
    """Call it before they are loaded, or start the process with QUIET in its environment."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


@contextmanager
def no_words_of_c() -> Iterator[None]:
    """Nothing that C code prints to standard output in the block is seen, at once or when the process ends."""
    sys.stdout.flush()
    _flush_c()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
        _flush_c()
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _flush_c() -> None:
    """Write out what C's own buffers hold."""
    try:
        ctypes.CDLL(None).fflush(None)
    except (OSError, AttributeError, TypeError):  # a system without such a library
        return
