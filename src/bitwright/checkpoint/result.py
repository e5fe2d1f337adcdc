"""What stands beside a checkpoint that Bitwright wrote: the plan it was written by (no torch)."""

from __future__ import annotations

from pathlib import Path

from bitwright.checkpoint.output import PROOF, beside
from bitwright.errors import fail, in_one_line
from bitwright.host.texts import read_object
from bitwright.plan import Plan


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
