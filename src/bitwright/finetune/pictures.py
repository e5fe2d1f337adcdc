"""Rows with images as examples: the model's own processor shows them, and the answer is what carries loss.

Pixels are large: they are made anew each time a row is learnt from, and none are kept.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bitwright.data.image_rows import images_of
from bitwright.data.pictures import Picture
from bitwright.data.samples import IDS
from bitwright.data.viewer import Viewer
from bitwright.errors import fail
from bitwright.finetune.conversations import Talk
from bitwright.finetune.rows import Row
from bitwright.finetune.tokens import IGNORED, Example


def example_of(talk: Talk, row: Row, folder: Path, viewer: Viewer, end: int, length: int) -> Example:
    """The images of ``row``, whose paths begin in ``folder``, with the question and the answer of ``talk``.

    ``end``: the token that ends an answer. A text that does not fit into ``length`` tokens carries no loss, since an image
    cannot be cut. Raises BitwrightError for a row with more than one question, and for an image that cannot be opened.
    """
    question, answer = _pair(talk)
    shown = partial(_shown, viewer, row, folder, f"row {talk.row}", question)
    ids = [*viewer.tokenizer(answer, add_special_tokens=False).input_ids, end]
    sample = viewer.answered(viewer.prompt(shown()), ids)
    labels = torch.full_like(sample.ids, IGNORED)
    n_cut = max(0, sample.n_tokens - length)
    if not n_cut:
        labels[:-1] = torch.where(sample.scored[:-1], sample.ids[1:], IGNORED) if sample.scored is not None else IGNORED
    more = {name: tensor for name, tensor in sample.inputs.items() if name != IDS}

    def media() -> dict[str, Tensor]:
        return viewer.answered(viewer.prompt(shown()), ids).media

    return Example(sample.ids, labels, n_cut, talk.row, more, media, sample.digest())


def _shown(viewer: Viewer, row: Row, folder: Path, where: str, question: str) -> Picture:
    first, *more = images_of(row, folder, where)
    return Picture(first, question, more=tuple(more))


def _pair(talk: Talk) -> tuple[str, str]:
    if [message["role"] for message in talk.messages] != ["user", "assistant"]:
        raise fail(
            "finetune/turns",
            f"row {talk.row}",
            saw=f"images with {len(talk.messages)} messages" if talk.messages else "images with a text alone",
            wanted="one question and one answer about the images of a row",
            help="a row for each question",
        )
    question, answer = (message["content"] for message in talk.messages)
    return question, answer
