"""A number format in config.json that is not the one of the weights.

Loaders that take `dtype` at its word cast every weight while loading: bfloat16 weights loaded as float16 overflow
above 65,504, and float32 takes twice the memory for nothing.

Source: transformers' from_pretrained, where `dtype="auto"` reads this setting.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import DTYPES, Correction, Model
from bitwright.errors import Finding, Severity


def check(model: Model) -> Iterator[Finding]:
    stated, right = _stated(model), model.usual_dtype
    if stated and right and stated != right:
        yield Finding(
            "config/dtype",
            "config.json",
            f"dtype {stated}, weights in {right}",
            "the format of the weights",
            f'set "dtype": "{right}"',
            Severity.WARNING,
        )


def fix(model: Model) -> Correction:
    """The format of the weights."""
    if not any(check(model)):
        return {}
    config = {name: value for name, value in model.config.items() if name != "torch_dtype"}
    return {"config.json": {**config, "dtype": model.usual_dtype}}


def _stated(model: Model) -> str | None:
    stated = model.config.get("dtype", model.config.get("torch_dtype"))
    name = stated.removeprefix("torch.") if isinstance(stated, str) and model.quantization is None else None
    return name if name in DTYPES else None
