"""Everything about a run but the source, the output and the budget (no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Effort(StrEnum):
    """How much calibration text a measurement takes, and with it how long: --effort."""

    QUICK = "quick"
    NORMAL = "normal"
    THOROUGH = "thorough"


@dataclass(frozen=True)
class Settings:
    """What a run is asked for. Names, units and defaults are those of the command line."""

    container: str = "bitsandbytes"
    formats: tuple[str, ...] = ()  # measured instead of the container's menu
    calibration: str = ""  # a file, a datasets id, or a word of data/calibration.py; empty: mixed where the model fits
    held_out: str = "documentation"
    sequences: int = 0  # of calibration text; 0: as many as ``effort`` gives (data/calibration.py)
    effort: Effort = Effort.NORMAL
    length: int = 256  # tokens of each
    held_out_sequences: int = 8
    held_out_length: int = 512
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"  # of the arithmetic: bfloat16 where the processor multiplies it, else float32
    imatrix: str = ""  # llama.cpp's importance matrix, whose scales replace those of the calibration text
    max_memory: int | None = None  # bytes, of the whole process
    trust_remote_code: bool = False
    compare: bool = True  # also build and measure the ablations
    fused_groups: bool = True  # weights that a runtime fuses share what it asks them to
