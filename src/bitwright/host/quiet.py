"""No words of libraries on the terminal: their warnings speak to programmers, and what matters of them is said by us."""

from __future__ import annotations

import logging
import os
import warnings


def silence_libraries() -> None:
    """Call it before they are loaded; processes that are started later are silent too."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its warnings repeat what a model's files say, as they say it
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
