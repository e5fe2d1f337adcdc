"""One example as its file has it, and what is said of a file that cannot be read (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitwright.errors import BitwrightError, fail


class Row(dict[str, Any]):
    """Cells by the names of their columns. ``number``: of the row in its file, as spreadsheets and editors count; in the
    ``sheet`` of that name, where several are read."""

    def __init__(self, cells: Mapping[str, Any], number: int, sheet: str = "") -> None:
        super().__init__(cells)
        self.number, self.sheet = number, sheet


def number_of(row: Mapping[str, Any], place: int) -> int:
    """Where ``row`` stands in its file; its ``place`` among the rows, from one, where nobody noted that."""
    return row.number if isinstance(row, Row) else place


def bad_table(path: Path, saw: str, wanted: str) -> BitwrightError:
    """The error for a table that is damaged, or is none."""
    return fail("data/table", path, saw=saw, wanted=wanted, help="repair the file, or save it again as .csv in UTF-8")
