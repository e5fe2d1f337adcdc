"""A mixture of experts whose router is packed into few bits.

The router is a small matrix that chooses the experts of every token. Rounded to 4 bits it chooses others: a model at 4
bits with such a router repeats itself, with its router in 16 bit it does not; 8 bits are harmless. It saves next to
nothing.

Source: https://github.com/warpfront/hipfire/pull/180; https://github.com/ml-explore/mlx-examples/pull/640.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.errors import Finding, Severity

ROUTERS = ("mlp.gate", "block_sparse_moe.gate", "mixer.gate", "mlp.router", "feed_forward.router")
PACKED = {"weight": ("U8", "U32", "I32"), "qweight": ("I32", "U32"), "weight_packed": ("I32", "U8", "U32")}
FEW_BITS = 4


def check(model: Model) -> Iterator[Finding]:
    settings = model.quantization or model.config.get("quantization")  # as MLX calls it
    bits = settings.get("bits") if isinstance(settings, dict) else None
    few = not isinstance(bits, int) or bits <= FEW_BITS
    for name, ref in model.refs.items():
        module, _, kind = name.rpartition(".")
        if module.endswith(ROUTERS) and ref.dtype in PACKED.get(kind, ()):
            yield Finding(
                "quantization/router",
                name,
                f"packed as {ref.dtype}",
                "a router in 16 bit",
                "quantize again and skip the routers",
                Severity.WARNING if few else Severity.NOTE,
            )
            return
