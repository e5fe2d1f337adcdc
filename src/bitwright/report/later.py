"""What became of a file after its report was written (no torch)."""

from __future__ import annotations

from html import escape
from pathlib import Path

from bitwright.checkpoint.output import beside, write_json, write_text
from bitwright.host.texts import read_object
from bitwright.report.page import VERDICT


def tell_later(out: Path, words: str) -> None:
    """Say in the report beside ``out``, data and page, what its figures do not know. Nothing where there is none.

    >>> tell_later(Path("nowhere"), "The codes were trained on.")
    """
    data, page = beside(out, "report.json"), beside(out, "report.html")
    if data.exists():
        told = read_object(data)
        write_json(data, told | {"notes": [*told["notes"], words]})
    if page.exists():
        said = f"{VERDICT}<p><b>{escape(words)}</b></p>"
        write_text(page, page.read_text(encoding="utf-8").replace(VERDICT, said, 1))
