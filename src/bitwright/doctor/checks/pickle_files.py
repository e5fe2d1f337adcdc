"""Pickle files beside the weights.

A pickle can run any code when it is read. Weights in safetensors make `pytorch_model.bin` and its like unnecessary, and
`training_args.bin` is a pickle too. Old loaders prefer whichever file they know.

Source: https://docs.python.org/3/library/pickle.html ("Only unpickle data you trust").
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Correction, Model
from bitwright.errors import Finding, Severity

OTHERS = ("openvino",)  # whose .bin files hold plain numbers
SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def check(model: Model) -> Iterator[Finding]:
    for name in _pickles(model):
        yield Finding("files/pickle", name, "a pickle", "weights in safetensors alone", f"delete {name}", Severity.WARNING)


def fix(model: Model) -> Correction:
    """Left out where the weights are there without them."""
    return dict.fromkeys(_pickles(model)) if model.refs else {}


def _pickles(model: Model) -> list[str]:
    return [name for name in model.files if name.endswith(SUFFIXES) and not name.startswith(OTHERS)]
