"""A memory budget as people write it: +10%, 0.5GB, 500MB, 4.6bpw (no torch)."""

from __future__ import annotations

import re

from bitwright.errors import fail
from bitwright.sensitivity import Sensitivity

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def budget_nbytes(text: str, sensitivity: Sensitivity) -> int:
    """Bytes of all tensors that ``text`` allows.

    ``+10%`` (or ``-5%``): over the container's own quantizer applied to this model. ``4.6bpw``: bits for each quantizable
    weight, on top of what is kept. ``0.5GB``, ``500MB``, ``400MiB``: the whole. ``like Q4_K_M``: what that recipe takes.
    """
    text = text.strip()
    if match := re.fullmatch(r"like\s+(\S+)", text):
        return _like(match[1].upper(), sensitivity)
    if match := re.fullmatch(r"([+-]?\d{1,9}(?:\.\d{1,9})?)\s*%", text):
        return int(sensitivity.stock_nbytes() * (1 + float(match[1]) / 100))
    if match := re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*bpw", text, re.IGNORECASE):
        return sensitivity.kept_nbytes + int(float(match[1]) * sensitivity.n_parameters / 8)
    if (match := re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?i?b)", text, re.IGNORECASE)) and match[2].upper() in UNITS:
        return int(float(match[1]) * UNITS[match[2].upper()])
    raise fail(
        "budget/syntax",
        "--budget",
        saw=repr(text[:60]),
        wanted="a budget such as +10%, 0.5GB, 500MB or 4.6bpw",
        help="--budget +10%",
    )


def _like(recipe: str, sensitivity: Sensitivity) -> int:
    if recipe in sensitivity.sizes:
        return sensitivity.sizes[recipe]
    known = ", ".join(sensitivity.sizes)
    raise fail(
        "budget/like",
        f"--like {recipe}",
        saw=f"no recipe of this name for {sensitivity.container}",
        wanted=f"one of {known}" if known else "a container with recipes: gguf",
        help="--like Q4_K_M" if known else "--container gguf --like Q4_K_M",
    )
