"""Texts and JSON that people and strangers wrote, read so that no file can hang, fill or break a program (no torch)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

MOST_BYTES = 256 * 2**20  # of a configuration, an index, a table: the largest index of a published model has a tenth of that
NEAR = 24  # letters that show where a text breaks off
DEEPEST = 100  # lists and objects within each other
T = TypeVar("T")


class UnreadableError(ValueError):
    """Why a text cannot be read, in a few words for the reader of an error."""


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a plain file in UTF-8, a byte order mark dropped.

    Raises UnreadableError for what is no plain file (a pipe would be read for ever), larger than ``most`` bytes, or other text.
    """
    try:
        if not path.is_file():
            raise UnreadableError("no such file" if not path.exists() else "no plain file")
        if path.stat().st_size > most:
            raise UnreadableError(f"larger than {most / 1e6:.0f} MB")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode("utf-8")
        line, start = before.count("\n") + 1, before.rpartition("\n")[2][-NEAR:]
        raise UnreadableError(f"line {line}: no UTF-8 text after {start!r}") from None
    except OSError as error:
        raise UnreadableError(error.strerror or type(error).__name__) from None


def parse_json(text: str) -> Any:
    """``text`` as JSON. Raises UnreadableError for what is none, and for what is nested deeper than DEEPEST."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise UnreadableError("JSON nested too deeply") from None
    except ValueError as error:
        raise UnreadableError(f"not JSON ({str(error)[:80]})") from None
    layer, depth = [value], 0
    while layer:  # of lists and objects
        layer = [part for outer in layer for part in _parts(outer) if isinstance(part, dict | list)]
        depth += 1
        if depth > DEEPEST:
            raise UnreadableError("JSON nested too deeply")
    return value


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """The JSON value in ``path``; raises UnreadableError."""
    return parse_json(read_text(path, most))


def read_object(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in ``path``; raises UnreadableError, also for another JSON value."""
    value = read_json(path, most)
    if not isinstance(value, dict):
        raise UnreadableError(f"a JSON {type(value).__name__}, not an object")
    return value


def record(cls: type[T], values: dict[str, Any]) -> T:
    """The dataclass ``cls`` of ``values`` from JSON. Raises UnreadableError where a plain field holds another kind of value.

    Checked are fields annotated ``int``, ``float``, ``str``, ``bool`` and ``dict``, with None where the annotation allows it.
    """
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name in values and not _fits(str(field.type), values[field.name]):
            raise UnreadableError(f"{field.name} is {str(values[field.name])[:40]!r}")
    return cls(**values)


def _fits(annotation: str, value: Any) -> bool:
    kind, _, absent = annotation.partition(" | ")
    if absent == "None" and value is None:
        return True
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if annotation == "dict[str, int]":
        return isinstance(value, dict) and all(type(number) is int for number in value.values())
    known = {"int": int, "str": str, "bool": bool, "dict[str, Any]": dict}.get(kind)
    return known is None or type(value) is known
