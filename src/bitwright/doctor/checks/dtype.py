"""A number format in config.json that is not the one of the weights.

Loaders that take `dtype` at its word cast every weight while loading: bfloat16 weights loaded as float16 overflow
above 65,504, and float32 takes twice the memory for nothing.

Source: transformers' from_pretrained, where `dtype="auto"` reads this setting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.errors import Finding

NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def check(model: Model) -> Iterator[Finding]:
    stated = model.config.get("dtype", model.config.get("torch_dtype"))
    if not isinstance(stated, str) or "quantization_config" in model.config:
        return
    stored: Counter[str] = Counter()
    for ref in model.refs.values():
        if len(ref.shape) >= 2:
            stored[ref.dtype] += ref.nbytes
    usual = stored.most_common(1)[0][0] if stored else None
    known = NAMES.get(stated.removeprefix("torch."))
    if usual and known and usual != known:
        right = next((name for name, code in NAMES.items() if code == usual), usual)
        yield Finding(
            "config/dtype", "config.json", f"dtype {stated}, weights in {usual}", "the format of the weights",
            f'set "dtype": "{right}"', "warning",
        )  # fmt: skip
