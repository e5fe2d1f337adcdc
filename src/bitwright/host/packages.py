"""Packages that only some jobs need: asked for before anything slow, and named with the command that installs them."""

from __future__ import annotations

import importlib.util

from bitwright.errors import BitwrightError, fail

WHEELS = {  # where the names differ
    "PIL": "pillow",
    "compressed_tensors": "compressed-tensors",
    "liger_kernel": "liger-kernel",
    "lm_eval": "lm-eval",
}


def not_installed(rule: str, where: object, module: str, purpose: str) -> BitwrightError:
    """The error for a ``module`` that is missing; ``purpose``: what it does for the job."""
    package = WHEELS.get(module, module)
    return fail(rule, where, saw=f"{package} is not installed", wanted=purpose, help=f"pip install {package}")


def require_package(rule: str, where: object, module: str, purpose: str) -> None:
    """Raise BitwrightError where ``module`` cannot be imported."""
    if importlib.util.find_spec(module) is None:
        raise not_installed(rule, where, module, purpose)
