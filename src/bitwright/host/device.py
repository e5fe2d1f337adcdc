"""Which device computes, and in which type."""

from __future__ import annotations

import torch

from bitwright.errors import fail


def device_of(name: str) -> torch.device:
    """The device called ``name``; ``auto``: CUDA where there is one. Raises BitwrightError for one that torch cannot use."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        return device
    except (RuntimeError, AssertionError) as error:
        raise fail(
            "device/unknown",
            f"--device {name}",
            saw=str(error).splitlines()[0],
            wanted="a device that torch can use here",
            help="--device auto",
        ) from error


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The type of the arithmetic; ``auto``: bfloat16 where the device multiplies it, else float32."""
    if name in ("float32", "bfloat16"):
        return torch.float32 if name == "float32" else torch.bfloat16
    if device.type != "cpu" or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def reference_dtype(device: torch.device) -> str:
    """The type in which the 16-bit model is run to be compared with."""
    return "float32" if device.type == "cpu" else "bfloat16"
