"""Bitwright: spend a memory budget on a language model's weights where it matters.

The public names load on first use; ``import bitwright`` pulls in neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitwright.allocate.allocate import allocate
    from bitwright.errors import BitwrightError, Finding
    from bitwright.evaluate.report import Report
    from bitwright.measure.sensitivity import Sensitivity
    from bitwright.measurement import Settings
    from bitwright.pipeline import evaluate, measure, quantize
    from bitwright.plan import Plan

_HOME = {
    "BitwrightError": "bitwright.errors",
    "Finding": "bitwright.errors",
    "Plan": "bitwright.plan",
    "Report": "bitwright.evaluate.report",
    "Sensitivity": "bitwright.measure.sensitivity",
    "Settings": "bitwright.measurement",
    "allocate": "bitwright.allocate.allocate",
    "evaluate": "bitwright.pipeline",
    "measure": "bitwright.pipeline",
    "quantize": "bitwright.pipeline",
}

__all__ = [
    "BitwrightError", "Finding", "Plan", "Report", "Sensitivity", "Settings", "allocate", "evaluate", "measure", "quantize",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bitwright' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
