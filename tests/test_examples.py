"""Every example in a docstring does what it says."""

import doctest
import importlib
import pkgutil
import sys

import pytest

import bitwright

MODULES = [module.name for module in pkgutil.walk_packages(bitwright.__path__, "bitwright.") if "__main__" not in module.name]
WORKERS = ("bitwright.evaluate.tasks_worker",)  # loads a library that only it needs


@pytest.mark.parametrize("name", [name for name in MODULES if name not in WORKERS])
def test_the_examples_of(name: str) -> None:
    importlib.import_module(name)
    assert doctest.testmod(sys.modules[name]).failed == 0
