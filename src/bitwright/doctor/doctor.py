"""Is a checkpoint sound? Checks over configuration, tokenizer and headers, and on request over the weights (no torch)."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import ModuleType

from bitwright.checkpoint import hub
from bitwright.checkpoint.gguf_header import read_gguf_header
from bitwright.doctor import checks, gguf_checks, weight_checks
from bitwright.doctor.model import Model
from bitwright.doctor.statistics import Statistics, measure
from bitwright.doctor.weight_checks import untrained_tokens
from bitwright.errors import BitwrightError, Finding, Severity
from bitwright.host.progress import Reporter

ODD = "files/odd"  # what no check expects
SEVERITIES = (Severity.ERROR, Severity.WARNING, Severity.NOTE)


def examine(path: Path, weights: bool = False, reporter: Reporter | None = None) -> list[Finding]:
    """All findings about the model in the directory or .gguf file ``path``, the gravest first.

    ``weights``: read every weight of a directory once, too.
    """
    found = _of_gguf(path) if path.is_file() else _of_directory(path, weights, reporter or Reporter(quiet=True))
    return _ordered(found)


def examine_for_training(directory: Path) -> list[Finding]:
    """All findings that need no weights, and what is wrong with the rows of tokens, for which embedding and head are read."""
    model = Model(directory)
    return _ordered(_found(model) + _carefully(untrained_tokens.__name__, partial(_of_rows, model)))


def _of_rows(model: Model) -> Iterator[Finding]:
    found = [measure(ref, rows_too=True) for ref in (model.embedding, model.head) if ref is not None]
    return untrained_tokens.check(model, [one for one in found if one is not None])


def in_lines(findings: list[Finding], most: int = 3) -> tuple[str, ...]:
    """The gravest of ``findings`` in a line each, notes left out, and the number of the others."""
    grave = [finding for finding in findings if finding.severity != Severity.NOTE]
    lines = tuple(f"{finding.where}: {finding.saw} ({finding.rule})" for finding in grave[:most])
    return (*lines, f"{len(grave) - most} more findings: bitwright doctor prints all") if len(grave) > most else lines


def examine_on_hub(repo: str) -> list[Finding]:
    """The same of the hub's model ``repo``, of which texts and tensor headers are fetched and no weight is."""
    held, names = hub.headers(repo), hub.file_names(repo)
    model = Model(hub.texts(repo), None if held is None else (held, names), repo)
    return _ordered(_found(model))


def _ordered(found: list[Finding]) -> list[Finding]:
    return sorted(dict.fromkeys(found), key=lambda finding: (SEVERITIES.index(finding.severity), finding.rule))


def _found(model: Model) -> list[Finding]:
    found = [finding for module in _modules(checks) for finding in _carefully(module.__name__, partial(module.check, model))]
    return found + model.unreadable


def _carefully(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What a check finds. One that cannot cope with a file says so, and the others still speak."""
    try:
        return list(check())
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        saw = f"{type(error).__name__}: {str(error)[:80]}"
        return [
            Finding(ODD, name.rsplit(".", 1)[-1], saw, "files that this check can read", "compare them with the original model")
        ]


def _of_directory(directory: Path, weights: bool, reporter: Reporter) -> list[Finding]:
    if directory.is_dir() and not os.access(directory, os.R_OK | os.X_OK):
        return [_closed(directory, "Permission denied")]
    model = Model(directory)
    found = _found(model)
    if weights:
        statistics = list(_statistics(model, reporter))
        for module in _modules(weight_checks):
            found += _carefully(module.__name__, partial(module.check, model, statistics))
    return found


def _of_gguf(path: Path) -> list[Finding]:
    try:
        header = read_gguf_header(path)
    except BitwrightError as error:
        return [error.finding]
    except OSError as error:
        return [_closed(path, error.strerror or type(error).__name__)]
    return [f for module in _modules(gguf_checks) for f in _carefully(module.__name__, partial(module.check, header))]


def _closed(path: Path, saw: str) -> Finding:
    return Finding("files/closed", path.name, saw, "a model that can be read", "correct its rights")


def exit_code(findings: list[Finding]) -> int:
    """0 when nothing was found but notes, 1 for warnings, 2 for errors."""
    found = {finding.severity for finding in findings}
    return 2 if Severity.ERROR in found else 1 if Severity.WARNING in found else 0


def rules() -> dict[str, str]:
    """Name of each check -> its documentation: of directories, of their weights, of GGUF files."""
    found = {_name(module): _text(module) for folder in (checks, weight_checks) for module in _modules(folder)}
    return found | {f"gguf_{_name(module)}": _text(module) for module in _modules(gguf_checks)}


def _name(module: ModuleType) -> str:
    return module.__name__.rsplit(".", 1)[-1]


def _text(module: ModuleType) -> str:
    return (module.__doc__ or "").strip()


def check_modules() -> tuple[ModuleType, ...]:
    """The checks over a directory's texts and headers; one that has a ``fix`` can correct what it finds."""
    return _modules(checks)


@cache
def _modules(folder: ModuleType) -> tuple[ModuleType, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(folder.__path__))
    return tuple(importlib.import_module(f"{folder.__name__}.{name}") for name in names)


def _statistics(model: Model, reporter: Reporter) -> Iterator[Statistics]:
    """One pass over all weights; of embedding and head the size of every row is kept."""
    for ref in reporter.track(model.refs.values(), "weights", len(model.refs)):
        found = measure(ref, rows_too=ref in (model.embedding, model.head))
        if found is not None:
            yield found
