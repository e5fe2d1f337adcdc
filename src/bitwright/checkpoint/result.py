"""What stands beside a checkpoint that Bitwright wrote: the plan it was written by (no torch)."""

from __future__ import annotations

from pathlib import Path

from bitwright.checkpoint.output import PROOF, beside
from bitwright.errors import BitwrightError, fail, in_one_line
from bitwright.host.texts import read_object
from bitwright.plan import Plan


def original_of(path: Path, stated: str = "") -> Path:
    """The directory of the 16-bit model that the checkpoint at ``path`` was made of: ``stated``, or the name in its plan.

    Raises BitwrightError for a checkpoint that is not ours, and where there is no such model.
    """
    from bitwright.checkpoint.open import local_directory  # loads torch

    name = stated or plan_of(path).source
    try:
        return local_directory(name)
    except BitwrightError as error:
        if stated:
            raise
        raise fail(
            "result/source",
            path,
            saw=f"its 16-bit model, {name}, is not to be had: {error.finding.saw}",
            wanted="the model that it was made of",
            help="--source DIRECTORY",
        ) from error


def plan_of(path: Path) -> Plan:
    """The plan of the checkpoint at ``path``. Raises BitwrightError for one that is not ours."""
    try:
        return Plan.from_dict(read_object(beside(path, PROOF))["plan"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise fail(
            "result/not-ours",
            path,
            saw=f"no checkpoint that Bitwright wrote: {in_one_line(error)}",
            wanted=f"one with {beside(path, PROOF).name}",
            help="bitwright quantize SOURCE OUT",
        ) from None
