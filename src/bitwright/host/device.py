"""Which device computes, and in which type."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch

from bitwright.errors import fail

TRIALS, TRIAL_SIZE = 7, 768  # of a product of two square matrices: a tenth of a second in all
QUICKER = 1.4  # times as fast as float32, and no less: what is nearly alike would be decided by chance


def device_of(name: str) -> torch.device:
    """The device called ``name``; ``auto``: CUDA where there is one. Raises BitwrightError for one that torch cannot use."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # which "meta" cannot do
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise fail(
            "device/unknown",
            f"--device {name}",
            saw=str(error).splitlines()[0],
            wanted="a device that torch can use here",
            help="--device auto",
        ) from error


@dataclass(frozen=True)
class Precision:
    """The types of a measurement: of what computes, and of what is kept for later."""

    work: torch.dtype  # weights and activations of the block at hand, of embedding and head
    kept: torch.dtype  # states and gradients between blocks, and traffic


def precision_of(name: str, device: torch.device) -> Precision:
    """Both types as ``name`` says; ``auto``: bfloat16, but float32 at work where that is faster (docs/LOG.md)."""
    if name not in ("auto", "float32", "bfloat16"):
        raise fail(
            "dtype/unknown",
            f"--dtype {name}",
            saw="not a type that is measured in",
            wanted="auto, bfloat16 or float32",
            help="--dtype auto",
        )
    if name != "auto":
        dtype = torch.float32 if name == "float32" else torch.bfloat16
        return Precision(dtype, dtype)
    return Precision(quick_dtype(device), torch.bfloat16)


def quick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, or float32 on a processor that is slow at 16-bit numbers."""
    return torch.bfloat16 if device.type != "cpu" or _is_quick_at_16_bit() else torch.float32


@cache
def _is_quick_at_16_bit() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32: those with tiles do. Of those with AVX512-BF16 alone some
    take half the time and some twice as much, so these are tried."""
    if torch.cpu._is_amx_tile_supported() or not torch.cpu._is_avx512_bf16_supported():
        return torch.cpu._is_amx_tile_supported()
    wide = torch.ones(TRIAL_SIZE, TRIAL_SIZE)
    seconds = {wide.dtype: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(TRIALS):
        for dtype in seconds:
            matrix = wide.to(dtype)
            begin = time.perf_counter()
            torch.mm(matrix, matrix)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - begin)
    return QUICKER * seconds[torch.bfloat16] < seconds[wide.dtype]


def reference_dtype(device: torch.device) -> str:
    """The type in which the 16-bit model is run to be compared with."""
    return "float32" if device.type == "cpu" else "bfloat16"
