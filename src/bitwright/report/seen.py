"""Pictures with what the models said of them: for the page and the card (no torch)."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from bitwright.errors import printable
from bitwright.plan import NOISE_FLOOR

SIDE = 200  # pixels of a picture on the page


@dataclass(frozen=True)
class Seen:
    """A picture, the question about it, the answer that is right, and what each contender answered."""

    png: str  # base64
    question: str
    right: str
    answers: dict[str, str]  # contender's label -> its words

    @classmethod
    def of(cls, image: Any, question: str, right: str, answers: dict[str, str]) -> Seen:
        small = image.copy()
        small.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        small.save(file, "PNG", optimize=True)
        return cls(base64.b64encode(file.getvalue()).decode(), question, right, answers)

    def is_right(self, label: str) -> bool:
        """Whether the contender said the right answer word for word, but for case and space."""
        return _words(self.answers[label]) == _words(self.right)


def shown_as(label: str) -> str:
    """What a contender is called where words are compared, not figures."""
    return "16-bit model" if label == NOISE_FLOOR else label


def _words(text: str) -> str:
    return " ".join(text.casefold().split())


def as_html(pictures: Sequence[Seen], labels: Sequence[str]) -> str:
    """A section of the page; nothing without pictures."""
    if not pictures:
        return ""
    cards = []
    for seen in pictures:
        image = f'<img src="data:image/png;base64,{seen.png}" alt="picture of the question">'
        said = "".join(_answer(seen, label) for label in labels if label in seen.answers)
        right = f"<dt>right</dt><dd>{_text(seen.right)}</dd>"
        cards.append(f'<div class="seen">{image}<p>{_text(seen.question)}</p><dl>{right}{said}</dl></div>')
    note = "Pictures that calibration did not draw. Each model answers with its likeliest words, one after the other."
    return f'<h2>What it says of pictures</h2>\n<div class="seen-all">{"".join(cards)}</div>\n<p class="quiet">{note}</p>'


def _answer(seen: Seen, label: str) -> str:
    kind = "" if seen.is_right(label) else ' class="wrong"'
    return f"<dt>{escape(shown_as(label))}</dt><dd{kind}>{_text(seen.answers[label])}</dd>"


def _text(words: str) -> str:
    return escape(printable(words)) or "–"
