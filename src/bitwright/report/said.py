"""Short answers of the 16-bit model, of stock and of the result, with the first difference marked (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from bitwright.errors import printable
from bitwright.plan import NOISE_FLOOR
from bitwright.report.seen import shown_as

if TYPE_CHECKING:
    from bitwright.evaluate.verdict import Entry


@dataclass(frozen=True)
class Said:
    """A question, and what each contender answered."""

    question: str
    answers: dict[str, str]  # contender's label -> its words

    def apart(self, label: str) -> tuple[str, str]:
        """The answer of ``label`` up to the first word in which it differs from the 16-bit model's, and the rest.

        >>> Said("q", {NOISE_FLOOR: "It is blue.", "stock": "It is green."}).apart("stock")
        ('It is ', 'green.')
        """
        own, first = self.answers[label], self.answers.get(NOISE_FLOOR, "")
        if own == first:
            return own, ""
        same = next((i for i, (a, b) in enumerate(zip(own, first, strict=False)) if a != b), min(len(own), len(first)))
        at = same if same in (len(own), len(first)) else own.rfind(" ", 0, same) + 1
        return own[:at], own[at:]


def as_html(said: Sequence[Said], entries: Sequence[Entry], labels: Sequence[str]) -> str:
    """A section of the page; nothing without answers."""
    if not said:
        return ""
    shown = [label for label in labels if label in said[0].answers]
    rows = []
    for one in said:
        answers = "".join(f"<dt>{escape(shown_as(label))}</dt><dd>{_marked(one, label)}</dd>" for label in shown)
        rows.append(f'<div class="said"><p>{escape(printable(one.question))}</p><dl>{answers}</dl></div>')
    note = (
        "Each model answers with its likeliest words, one after the other. Marked is what follows the first word that differs."
    )
    facts = pace_of(entries, shown)
    return f"<h2>What it says</h2>\n<div class='said-all'>{''.join(rows)}</div>\n<p class='quiet'>{note} {escape(facts)}</p>"


def pace_of(entries: Sequence[Entry], labels: Sequence[str]) -> str:
    """Tokens a second and memory of each of ``labels``, in a sentence; nothing where they were not measured."""
    measured = {entry.label: entry.divergence for entry in entries if entry.divergence.tokens_per_second}
    found = [(shown_as(label), measured[label]) for label in labels if label in measured]
    parts = (f"{name} {one.tokens_per_second:.1f} and {one.loaded_nbytes / 1e9:.2f} GB" for name, one in found)
    return f"Tokens a second while answering, and memory after loading: {', '.join(parts)}." if found else ""


def _marked(one: Said, label: str) -> str:
    same, rest = (escape(printable(part)) for part in one.apart(label))
    return f"{same}<mark>{rest}</mark>" if rest else same or "–"
