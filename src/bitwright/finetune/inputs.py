"""From examples to what a model takes in one pass: short texts share a row, and a text with images stands alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitwright.finetune.tokens import IGNORED, Example

LABELS = "labels"
TEXT = "text"  # which of the batch a token belongs to, -1 for what fills a row
ROWS = "rows"  # of the file, one for each text
OURS = (LABELS, TEXT, ROWS)  # what no model takes


def inputs_of(batch: Sequence[Example], dtype: torch.dtype) -> dict[str, Tensor]:
    """The inputs of one pass. ``dtype``: of pixels."""
    return alone(batch, dtype) if any(example.media for example in batch) else packed(batch)


def packed(batch: Sequence[Example]) -> dict[str, Tensor]:
    """Texts as rows as long as the longest of them, several short ones in a row: positions restart with each, which keeps them
    apart in attention. Attention costs the square of a row, so rows are never longer than that.

    What is left of a row is a text of its own without labels.
    """
    width = max(len(example.ids) for example in batch)
    rows: list[list[Example]] = []
    for example in sorted(batch, key=lambda one: -len(one.ids)):  # first fit, the longest first
        room = next((row for row in rows if sum(len(one.ids) for one in row) + len(example.ids) <= width), None)
        if room is None:
            rows.append([example])
        else:
            room.append(example)
    number = {id(example): i for i, example in enumerate(batch)}
    filled = [_row(row, width, number) for row in rows]
    found = {name: torch.stack([row[name] for row in filled]) for name in ("input_ids", "position_ids", LABELS, TEXT)}
    return found | {ROWS: _rows(batch)}


def alone(batch: Sequence[Example], dtype: torch.dtype) -> dict[str, Tensor]:
    """The only example of ``batch``: classes lay out their pixels each in its way, so none share a pass."""
    (example,) = batch
    tokens = {"input_ids": example.ids, LABELS: example.labels, TEXT: torch.zeros_like(example.ids), **example.more}
    media = example.media() if example.media else {}
    placed = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in media.items()}
    return {name: tensor[None] for name, tensor in tokens.items()} | placed | {ROWS: _rows(batch)}


def _rows(batch: Sequence[Example]) -> Tensor:
    return torch.tensor([example.row for example in batch])


def _row(texts: Sequence[Example], width: int, number: dict[int, int]) -> dict[str, Tensor]:
    rest = width - sum(len(text.ids) for text in texts)
    if rest:
        texts = [*texts, Example(texts[0].ids[:1].expand(rest), torch.full((rest,), IGNORED), 0, 0)]
    return {
        TEXT: torch.cat([torch.full_like(text.ids, number.get(id(text), -1)) for text in texts]),
        "input_ids": torch.cat([text.ids for text in texts]),
        "position_ids": torch.cat([torch.arange(len(text.ids)) for text in texts]),
        LABELS: torch.cat([text.labels for text in texts]),
    }
