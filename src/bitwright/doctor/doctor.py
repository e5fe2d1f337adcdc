"""Is a checkpoint sound? Every check over its configuration, tokenizer and tensor headers (no torch, no weight read)."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from bitwright.doctor import checks
from bitwright.doctor.model import Model
from bitwright.errors import Finding

SEVERITIES = ("error", "warning", "note")

Check = Callable[[Model], Iterator[Finding]]


@cache
def rules() -> dict[str, str]:
    """Name of each check -> its documentation, in alphabetical order."""
    return {name: (importlib.import_module(f"{checks.__name__}.{name}").__doc__ or "").strip() for name in _names()}


def examine(directory: Path) -> list[Finding]:
    """All findings about the model in ``directory``, the gravest first."""
    model = Model(directory)
    found = [finding for name in _names() for finding in _check(name)(model)]
    found += model.unreadable
    return sorted(dict.fromkeys(found), key=lambda finding: (SEVERITIES.index(finding.severity), finding.rule))


def exit_code(findings: list[Finding]) -> int:
    """0 when nothing was found but notes, 1 for warnings, 2 for errors."""
    found = {finding.severity for finding in findings}
    return 2 if "error" in found else 1 if "warning" in found else 0


def _names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(checks.__path__))


def _check(name: str) -> Check:
    check: Check = importlib.import_module(f"{checks.__name__}.{name}").check
    return check
