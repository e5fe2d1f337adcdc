"""Rows of the files in which people keep examples, from .csv to .xlsx, or of a data set of the hub."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitwright.data.image_rows import captioned, is_folder
from bitwright.data.rows import is_data_set, read_rows
from bitwright.errors import BitwrightError, fail
from bitwright.host.packages import not_installed
from bitwright.host.texts import UnreadableError, parse_json, read_text

Row = dict[str, Any]
MOST_BYTES = 2**31  # of a file
MOST_CELL = 10**7  # characters of one cell of a table


def read_table(source: str, sheet: str = "") -> list[Row]:
    """The rows of ``source`` as dictionaries; a line of a .txt file is a row with a ``text``, a picture of a folder with its
    caption a question and an answer.

    ``sheet``: of an .xlsx file; without it the first one, and it is an error where several hold rows. Raises BitwrightError for
    a file that is empty, damaged, or of a kind that is not read.
    """
    path = Path(os.path.expanduser(source))
    if is_folder(str(path)):
        if rows := captioned(str(path)):
            return rows
        raise fail(
            "data/file",
            source,
            saw="a directory, with no picture that has a caption",
            wanted="pictures, each with what is to be said of it: NAME.txt beside NAME.jpg",
            help="name a file, or write captions",
        )
    if not path.exists() and is_data_set(source):
        return _dictionaries(list(read_rows(source, whole=True)), source)
    readers: dict[str, Callable[[Path], list[Row]]] = {
        ".csv": lambda path: _separated(path, ","),
        ".tsv": lambda path: _separated(path, "\t"),
        ".txt": lambda path: [{"text": line} for line in _text(path).splitlines() if line.strip()],
        ".json": _json,
        ".jsonl": lambda path: _dictionaries(list(read_rows(str(path))), str(path)),
        ".parquet": lambda path: _dictionaries(list(read_rows(str(path))), str(path)),
        ".xlsx": lambda path: _sheet(path, sheet),
    }
    if not path.is_file() or path.suffix not in readers:
        raise fail(
            "data/file",
            source,
            saw="no such file" if not path.exists() else f"a {path.suffix or 'nameless'} file",
            wanted=f"a {', '.join(readers)} file, a folder of pictures, or a data set of the hub (owner/name)",
            help="name another file",
        )
    rows = readers[path.suffix](path)
    if not rows:
        raise _bad(path, "no rows", "at least two rows, below a line of column names")
    return rows


def _separated(path: Path, separator: str) -> list[Row]:
    """Rows of a table in text. Excel writes semicolons where commas are decimal: the first line tells."""
    text = _text(path)
    first = text.partition("\n")[0]
    if separator == "," and first.count(";") > first.count(","):
        separator = ";"
    csv.field_size_limit(MOST_CELL)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        names = [name.strip() for name in reader.fieldnames or ()]
        if len(set(names)) < len(names) or not all(names):
            raise _bad(path, f"column names {names}", "a first line with a name of its own for each column")
        rows = []
        for number, row in enumerate(reader, 2):
            if None in row or None in row.values():
                raise _bad(
                    path, f"line {reader.line_num}: another number of cells than names", f"{len(names)} cells in row {number}"
                )
            if any(cell.strip() for cell in row.values()):  # Excel leaves blank rows behind
                rows.append({name.strip(): cell for name, cell in row.items()})
        return rows
    except csv.Error as error:
        raise _bad(
            path, f"line {reader.line_num}: {error}", "a table in text, with cells in quotes where they hold separators"
        ) from error


def _sheet(path: Path, wanted: str) -> list[Row]:
    """Rows of one sheet; the first line names the columns. A formula counts with the value that Excel saved for it."""
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise not_installed("data/package", path, "openpyxl", "it reads .xlsx files") from None

    def opened(saved: bool) -> dict[str, list[list[Any]]]:
        try:
            book = load_workbook(path, read_only=True, data_only=saved)
            return {sheet.title: [list(row) for row in sheet.iter_rows(values_only=True)] for sheet in book.worksheets}
        except Exception as error:  # noqa: BLE001 - whatever a broken archive raises in that library
            raise _bad(path, f"{type(error).__name__}: {str(error)[:100]}", "an .xlsx file that Excel opens") from None

    tables = opened(saved=True)
    held = [name for name, rows in tables.items() if len(rows) > 1]
    if wanted and wanted not in tables:
        raise _bad(path, f"no sheet {wanted!r}", f"one of {', '.join(map(repr, tables))}")
    if not wanted and len(held) > 1:
        raise fail(
            "data/sheets",
            path,
            saw=f"rows in {len(held)} sheets: {', '.join(map(repr, held))}",
            wanted="the sheet that holds the examples",
            help=f"--sheet {held[0]!r}",
        )
    title = wanted or (held or list(tables))[0]
    rows = tables[title]
    names = {at: str(name).strip() for at, name in enumerate(rows[0]) if name is not None} if rows else {}
    if len(set(names.values())) < len(names):
        raise _bad(path, f"column names {list(names.values())}", "a first line with a name of its own for each column")
    if any(cell is None for row in rows[1:] for cell in row):
        _require_values(path, rows, opened(saved=False)[title])
    filled = [row for row in rows[1:] if any(cell is not None for cell in row)]
    return [{name: _cell(row, at) for at, name in names.items()} for row in filled]


def _cell(row: list[Any], at: int) -> str:
    """A cell as text; rows may end with their last filled cell."""
    return "" if at >= len(row) or row[at] is None else str(row[at])


def _require_values(path: Path, rows: list[list[Any]], written: list[list[Any]]) -> None:
    """Raise for a formula without a saved value, as programs write them that do not compute: it would read as an empty cell."""
    for number, (row, formulas) in enumerate(zip(rows, written, strict=False), 1):
        for cell, formula in zip(row, formulas, strict=False):
            if cell is None and str(formula or "").startswith("="):
                raise fail(
                    "data/formula",
                    path,
                    saw=f"row {number}: the formula {str(formula)[:40]} has no saved value",
                    wanted="the values of formulas, which Excel and LibreOffice save beside them",
                    help="open the file there and save it again",
                )


def _json(path: Path) -> list[Row]:
    try:
        found = parse_json(_text(path))
    except UnreadableError as error:
        raise _bad(path, str(error), "a list of objects in JSON") from None
    return _dictionaries(found if isinstance(found, list) else [found], str(path))


def _dictionaries(rows: list[Any], source: str) -> list[Row]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise _bad(Path(source), f"row {number} is no object", "an object a row")
    return rows


def _text(path: Path) -> str:
    """The file as text: UTF-8 or, where it says so at its start, UTF-16, as Excel writes it."""
    try:
        return read_text(path, MOST_BYTES).removeprefix("\ufeff")
    except UnreadableError as error:
        with open(path, "rb") as file:
            start = file.read(2)
        if start in (b"\xff\xfe", b"\xfe\xff"):
            return path.read_bytes().decode("utf-16", errors="strict")
        raise _bad(path, str(error), "a text file in UTF-8") from None


def _bad(path: Path, saw: str, wanted: str) -> BitwrightError:
    return fail("data/table", path, saw=saw, wanted=wanted, help="repair the file, or save it again as .csv in UTF-8")
