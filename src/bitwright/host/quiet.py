"""No words of libraries on the terminal: their warnings speak to programmers, and what matters of them is said by us."""

from __future__ import annotations

import logging
import os
import warnings

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
