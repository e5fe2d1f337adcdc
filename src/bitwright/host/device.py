"""Which device computes, and in which type."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bitwright.errors import fail


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
    """Both types as ``name`` says; ``auto``: bfloat16, but float32 at work where that is faster.

    A processor without tiles for 16-bit numbers multiplies bfloat16 at half the speed of float32 or slower (docs/LOG.md).
    """
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
    """bfloat16, or float32 on a processor without tiles for 16-bit numbers."""
    narrow = device.type != "cpu" or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if narrow else torch.float32


def reference_dtype(device: torch.device) -> str:
    """The type in which the 16-bit model is run to be compared with."""
    return "float32" if device.type == "cpu" else "bfloat16"
