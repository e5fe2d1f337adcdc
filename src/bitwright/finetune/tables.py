"""Rows of the files in which people keep examples, from .csv to .xlsx, or of a data set of the hub."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bitwright.data.image_rows import captioned, is_folder
from bitwright.data.rows import is_data_set, read_rows
from bitwright.errors import fail
from bitwright.finetune.rows import Row, bad_table
from bitwright.finetune.sheets import read_sheets
from bitwright.host.texts import UnreadableError, parse_json, read_text

MOST_BYTES = 2**31  # of a file
MOST_CELL = 10**7  # characters of one cell of a table
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how Excel begins what it saves as Unicode text


def read_table(source: str, sheet: str = "") -> list[Row]:
    """The rows of ``source`` as dictionaries; a line of a .txt file is a row with a ``text``, a picture of a folder with its
    caption a question and an answer.

    ``sheet``: of an .xlsx file, as ``read_sheets`` takes it. Raises BitwrightError for a file that is empty, damaged, or of a
    kind that is not read.
    """
    path = Path(os.path.expanduser(source))
    if is_folder(str(path)):
        if pictures := captioned(str(path)):
            return _numbered(pictures, source)
        raise fail(
            "data/file",
            source,
            saw="a directory, with no picture that has a caption",
            wanted="pictures, each with what is to be said of it: NAME.txt beside NAME.jpg",
            help="name a file, or write captions",
        )
    if not path.exists() and is_data_set(source):
        return _numbered(read_rows(source, whole=True), source)
    readers: dict[str, Callable[[Path], list[Row]]] = {
        ".csv": lambda path: _separated(path, ","),
        ".tsv": lambda path: _separated(path, "\t"),
        ".txt": lambda path: [Row({"text": line}, number) for number, line in _lines(path)],
        ".json": _json,
        ".jsonl": _json_lines,
        ".parquet": lambda path: _numbered(read_rows(str(path)), str(path)),
        ".xlsx": lambda path: read_sheets(path, sheet),
    }
    kind = path.suffix.lower()
    if not path.is_file() or kind not in readers:
        raise fail(
            "data/file",
            source,
            saw="no such file" if not path.exists() else f"a {path.suffix or 'nameless'} file",
            wanted=f"a {', '.join(readers)} file, a folder of pictures, or a data set of the hub (owner/name)",
            help="name another file",
        )
    rows = readers[kind](path)
    if not rows:
        raise bad_table(path, "no rows", "at least two rows, below a line of column names")
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
            raise bad_table(path, f"column names {names}", "a first line with a name of its own for each column")
        rows = []
        for number, row in enumerate(reader, 2):
            if None in row or None in row.values():
                saw = f"line {reader.line_num}: another number of cells than names"
                raise bad_table(path, saw, f"{len(names)} cells in row {number}")
            if any(cell.strip() for cell in row.values()):  # Excel leaves blank rows behind
                rows.append(Row({name.strip(): cell for name, cell in row.items()}, number))
        return rows
    except csv.Error as error:
        saw = f"line {reader.line_num}: {error}"
        raise bad_table(path, saw, "a table in text, with cells in quotes where they hold separators") from error


def _json(path: Path) -> list[Row]:
    try:
        found = parse_json(_text(path))
    except UnreadableError as error:
        raise bad_table(path, str(error), "a list of objects in JSON") from None
    return _numbered(found if isinstance(found, list) else [found], str(path))


def _json_lines(path: Path) -> list[Row]:
    rows = []
    for number, line in _lines(path):
        try:
            row = parse_json(line)
        except UnreadableError as error:
            raise bad_table(path, f"line {number}: {error}", "an object in JSON a line") from None
        rows.append(_row(row, number, path))
    return rows


def _numbered(rows: Iterable[Any], source: str) -> list[Row]:
    return [_row(row, number, Path(source)) for number, row in enumerate(rows, 1)]


def _row(cells: Any, number: int, path: Path) -> Row:
    if not isinstance(cells, dict):
        raise bad_table(path, f"row {number} is no object", "an object a row")
    return Row(cells, number)


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text that are not blank, with their numbers."""
    lines = _text(path).split("\n")  # and nowhere else: JSON may hold other ends of lines
    return [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]


def _text(path: Path) -> str:
    """The file as text: UTF-8 or, where it says so at its start, UTF-16, as Excel writes it."""
    try:
        return read_text(path, MOST_BYTES).removeprefix("\ufeff")
    except UnreadableError as error:
        saw = str(error)
    with open(path, "rb") as file:
        is_wide = file.read(2) in UTF_16
    try:
        if is_wide and path.stat().st_size <= MOST_BYTES:
            return path.read_bytes().decode("utf-16")
    except UnicodeDecodeError as error:
        saw = f"UTF-16 that breaks off: {error.reason}"
    raise bad_table(path, saw, "a text file in UTF-8")
