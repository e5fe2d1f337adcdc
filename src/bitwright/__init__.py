"""Bitwright: spend a memory budget on a language model's weights where it matters.

The public names load on first use; ``import bitwright`` pulls in neither torch nor transformers.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitwright.allocate.allocate import allocate
    from bitwright.diagnose import doctor
    from bitwright.errors import BitwrightError, Finding
    from bitwright.estimate.model import estimate
    from bitwright.finetune.finetune import finetune
    from bitwright.finetune.merge import merge
    from bitwright.finetune.repair import Repaired, repair
    from bitwright.finetune.training import Training
    from bitwright.forecast.forecast import Forecast
    from bitwright.host.quiet import silence_libraries
    from bitwright.pipeline import evaluate, forecast, measure, quantize, report
    from bitwright.plan import Plan
    from bitwright.push.push import push
    from bitwright.report.report import Report
    from bitwright.sensitivity import Sensitivity
    from bitwright.settings import Settings

_HOME = {
    "BitwrightError": "bitwright.errors",
    "Finding": "bitwright.errors",
    "Forecast": "bitwright.forecast.forecast",
    "Plan": "bitwright.plan",
    "Repaired": "bitwright.finetune.repair",
    "Report": "bitwright.report.report",
    "Sensitivity": "bitwright.sensitivity",
    "Settings": "bitwright.settings",
    "Training": "bitwright.finetune.training",
    "allocate": "bitwright.allocate.allocate",
    "doctor": "bitwright.diagnose",
    "estimate": "bitwright.estimate.model",
    "evaluate": "bitwright.pipeline",
    "finetune": "bitwright.finetune.finetune",
    "forecast": "bitwright.pipeline",
    "measure": "bitwright.pipeline",
    "merge": "bitwright.finetune.merge",
    "push": "bitwright.push.push",
    "quantize": "bitwright.pipeline",
    "repair": "bitwright.finetune.repair",
    "report": "bitwright.pipeline",
    "silence_libraries": "bitwright.host.quiet",
}

__all__ = [
    "BitwrightError",
    "Finding",
    "Forecast",
    "Plan",
    "Repaired",
    "Report",
    "Sensitivity",
    "Settings",
    "Training",
    "allocate",
    "doctor",
    "estimate",
    "evaluate",
    "finetune",
    "forecast",
    "measure",
    "merge",
    "push",
    "quantize",
    "repair",
    "report",
    "silence_libraries",
]


class _Public:
    """A public name that loads on first use. It stays the function also where a folder has the same name:
    the import system's own assignment of ``bitwright.measure`` and its like is ignored."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, package: ModuleType, owner: type) -> Any:
        return getattr(import_module(_HOME[self.name]), self.name)

    def __set__(self, package: ModuleType, value: object) -> None:
        pass


class _Version:
    """``bitwright.__version__``, as installed."""

    def __get__(self, package: ModuleType, owner: type) -> str:
        return str(import_module("importlib.metadata").version("bitwright"))


def _names(package: ModuleType) -> list[str]:
    return [*__all__, "__version__", "__doc__", "__name__", "__path__"]


_OWN = {name: _Public(name) for name in _HOME} | {"__version__": _Version(), "__dir__": _names}
sys.modules[__name__].__class__ = type("Bitwright", (ModuleType,), _OWN)
