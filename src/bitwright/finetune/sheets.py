"""Rows of .xlsx files: of one sheet, or of several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitwright.errors import fail
from bitwright.finetune.rows import Row, bad_table
from bitwright.host.packages import not_installed

EVERY = "*"  # all sheets that hold rows
Cells = list[list[Any]]


def read_sheets(path: Path, wanted: str) -> list[Row]:
    """Rows of the sheets ``wanted``: a name, several with commas, or EVERY; the first line of each names its columns.

    Without a name the only sheet that holds rows. A formula counts with the value that Excel saved for it. Raises
    BitwrightError for a broken file, a sheet that is not there, and rows in several sheets where none is named.
    """
    tables = _opened(path, saved=True)
    held = [name for name, rows in tables.items() if len(rows) > 1]
    if not wanted and len(held) > 1:
        raise fail(
            "data/sheets",
            path,
            saw=f"rows in {len(held)} sheets: {', '.join(map(repr, held))}",
            wanted="the sheet that holds the examples, or several",
            help=f"--sheet {held[0]!r}, or --sheet '{EVERY}' for all",
        )
    titles = held if wanted == EVERY else _titles(path, wanted, list(tables)) if wanted else held[:1]
    return [row for title in titles for row in _rows_of(path, title, tables[title], len(titles) > 1)]


def _titles(path: Path, wanted: str, known: list[str]) -> list[str]:
    """The sheets that ``wanted`` names: a title may have commas itself."""
    titles = [wanted] if wanted in known else [name.strip() for name in wanted.split(",")]
    if missing := [title for title in titles if title not in known]:
        saw = f"no sheet {', '.join(map(repr, missing))}"
        raise bad_table(path, saw, f"one of {', '.join(map(repr, known))}")
    return titles


def _opened(path: Path, saved: bool) -> dict[str, Cells]:
    """All cells by sheet; ``saved``: the values of formulas instead of the formulas."""
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise not_installed("data/package", path, "openpyxl", "it reads .xlsx files") from None
    try:
        found = {}
        for sheet in load_workbook(path, read_only=True, data_only=saved).worksheets:
            sheet.reset_dimensions()  # what a file says of its own size may be of an earlier day
            found[sheet.title] = [list(row) for row in sheet.iter_rows(values_only=True)]
        return found
    except Exception as error:  # noqa: BLE001 - whatever a broken archive raises in that library
        raise bad_table(path, f"{type(error).__name__}: {str(error)[:100]}", "an .xlsx file that Excel opens") from None


def _rows_of(path: Path, title: str, cells: Cells, named: bool) -> list[Row]:
    names = {at: str(name).strip() for at, name in enumerate(cells[0]) if name is not None} if cells else {}
    if len(set(names.values())) < len(names):
        raise bad_table(path, f"column names {list(names.values())}", "a first line with a name of its own for each column")
    if any(cell is None for row in cells[1:] for cell in row):
        _require_values(path, cells, _opened(path, saved=False)[title])
    _require_no_errors(path, cells, names)
    return [
        Row({name: _cell(row, at) for at, name in names.items()}, number, title if named else "")
        for number, row in enumerate(cells[1:], 2)
        if any(cell is not None for cell in row)
    ]


def _cell(row: list[Any], at: int) -> str:
    """A cell as text; rows may end with their last filled cell."""
    return "" if at >= len(row) or row[at] is None else str(row[at])


def _require_no_errors(path: Path, rows: Cells, names: Mapping[int, str]) -> None:
    """Raise for a cell that holds what Excel writes for a formula that failed: it would be learnt as text."""
    from openpyxl.cell.cell import ERROR_CODES

    for number, row in enumerate(rows[1:], 2):
        for at, cell in enumerate(row):
            if at in names and cell in ERROR_CODES:
                saw, help = f"row {number}: {cell} in column {names[at]!r}", "repair the formula, or remove the row"
                raise fail("data/formula", path, saw=saw, wanted="values", help=help)


def _require_values(path: Path, rows: Cells, written: Cells) -> None:
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
