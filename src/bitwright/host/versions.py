"""Versions of everything that can change a result (no torch)."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("bitwright", "torch", "transformers", "bitsandbytes", "safetensors", "tokenizers", "scipy", "numpy")


def versions() -> dict[str, str]:
    """Package name -> version, and Python's."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
