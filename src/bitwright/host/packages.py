"""Packages that only some jobs need: asked for before anything slow, and named with the command that installs them."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement

from bitwright.errors import BitwrightError, fail

WHEELS = {  # where the names differ
    "PIL": "pillow",
    "compressed_tensors": "compressed-tensors",
    "liger_kernel": "liger-kernel",
    "lm_eval": "lm-eval",
}


def pip_install(*packages: str) -> str:
    """The command that installs ``packages`` in the versions that this product was made for.

    >>> pip_install("pillow")
    "pip install 'pillow<14,>=10.1'"
    """
    known = _versions()
    return " ".join(["pip install", *(f"'{package}{known[package]}'" if package in known else package for package in packages)])


@cache
def _versions() -> dict[str, str]:
    """What our own extras ask of each package, as their metadata says it."""
    try:
        wanted = [Requirement(line) for line in requires("bitwright") or ()]
    except PackageNotFoundError:  # a folder of sources that was never installed
        return {}
    return {requirement.name: str(requirement.specifier) for requirement in wanted}


def not_installed(rule: str, where: object, module: str, purpose: str) -> BitwrightError:
    """The error for a ``module`` that is missing; ``purpose``: what it does for the job."""
    package = WHEELS.get(module, module)
    return fail(rule, where, saw=f"{package} is not installed", wanted=purpose, help=pip_install(package))


def require_package(rule: str, where: object, module: str, purpose: str) -> None:
    """Raise BitwrightError where ``module`` cannot be imported."""
    if importlib.util.find_spec(module) is None:
        raise not_installed(rule, where, module, purpose)
