"""What became of a file after its report was written (no torch)."""

from __future__ import annotations

from html import escape
from pathlib import Path

from huggingface_hub import ModelCard

from bitwright.checkpoint.output import beside, write_json, write_text
from bitwright.host.texts import read_object
from bitwright.report.page import VERDICT

FIGURES = "model-index:"  # under which the hub looks for them


def tell_later(out: Path, words: str, section: str = "") -> None:
    """Say in the report beside ``out``, data and page, what its figures do not know; nothing where there is none. Its card
    gets ``section`` at its end, and claims no figures to the hub any more.

    >>> tell_later(Path("nowhere"), "The codes were trained on.")
    """
    data, page, card = (beside(out, name) for name in ("report.json", "report.html", "README.md"))
    if data.exists():
        told = read_object(data)
        write_json(data, told | {"notes": [*told["notes"], words]})
    if page.exists():
        said = f"{VERDICT}<p><b>{escape(words)}</b></p>"
        write_text(page, page.read_text(encoding="utf-8").replace(VERDICT, said, 1))
    if card.exists():
        write_text(card, without_figures(card.read_text(encoding="utf-8")) + section)


def without_figures(text: str) -> str:
    """The model card ``text`` with no measured figures in the metadata that the hub reads; as it is where those are broken.

    >>> without_figures("---\\nlicense: mit\\n---\\n# Small\\n")
    '---\\nlicense: mit\\n---\\n# Small\\n'
    """
    if FIGURES not in text:
        return text
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
        card.data["eval_results"] = None
        return str(card)
    except Exception:  # noqa: BLE001 - a card that somebody has edited cannot be read: no training is lost to that
        return text
