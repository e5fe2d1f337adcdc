"""From examples to what a model takes in one pass: short texts share a row where the model keeps them apart, and a text with
images stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitwright.finetune.tokens import IGNORED, Example

LABELS = "labels"
TEXT = "text"  # which of the batch a token belongs to, -1 for what fills a row
ROWS = "rows"  # of the file, one for each text
OURS = (LABELS, TEXT, ROWS)  # what no model takes
PROBE = (5, 7)  # tokens of two texts that are tried in one row
LEAK = 1e-5  # relative change of a text's states, from which on it depends on its neighbour: in equal shapes there is none


@dataclass(frozen=True)
class Layout:
    """How examples become the inputs of one pass."""

    dtype: torch.dtype  # of pixels
    shared: bool  # whether a row may hold several texts

    @classmethod
    def of(cls, model: Any, dtype: torch.dtype) -> Layout:
        """That of ``model``, which is tried."""
        return cls(dtype, keeps_apart(model))

    def __call__(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        if any(example.media for example in batch):
            return alone(batch, self.dtype)
        return packed(batch) if self.shared else padded(batch)


@torch.no_grad()
def keeps_apart(model: Any) -> bool:
    """Whether a text whose positions restart sees nothing of what stands before it in its row.

    Attention of most classes is masked so; recurrent states, convolutions, positions that are counted and masks of a class's
    own are not. The second of two texts is run behind one and behind another: its states are the same, or it has seen it.
    """
    device, (first, second) = next(model.parameters()).device, PROBE
    ids = torch.arange(first + second, device=device) % model.config.get_text_config().vocab_size
    positions = torch.cat([torch.arange(first), torch.arange(second)]).to(device)
    was_training = model.training
    model.eval()
    states = []
    for shift in (0, 1):
        shifted = torch.cat([ids[:first].roll(shift), ids[first:]])
        try:
            body = model.base_model(input_ids=shifted[None], position_ids=positions[None], use_cache=False)
        except TypeError:  # a class that takes no positions
            return False
        states.append(body.last_hidden_state[0, first:].float())
    model.train(was_training)
    change = (states[0] - states[1]).norm() / states[0].norm().clamp(min=torch.finfo(torch.float32).tiny)
    return bool(change <= LEAK)


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


def padded(batch: Sequence[Example]) -> dict[str, Tensor]:
    """Texts in a row each, as long as the longest of them, what follows a text masked: what every class takes."""
    width = max(len(example.ids) for example in batch)
    columns = {
        "input_ids": ([example.ids for example in batch], 0),
        "attention_mask": ([torch.ones_like(example.ids) for example in batch], 0),
        LABELS: ([example.labels for example in batch], IGNORED),
        TEXT: ([torch.full_like(example.ids, i) for i, example in enumerate(batch)], -1),
    }
    found = {name: torch.stack([_longer(row, width, fill) for row in rows]) for name, (rows, fill) in columns.items()}
    return found | {ROWS: _rows(batch)}


def alone(batch: Sequence[Example], dtype: torch.dtype) -> dict[str, Tensor]:
    """The only example of ``batch``: classes lay out their pixels each in its way, so none share a pass."""
    (example,) = batch
    tokens = {"input_ids": example.ids, LABELS: example.labels, TEXT: torch.zeros_like(example.ids), **example.more}
    media = example.media() if example.media else {}
    placed = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in media.items()}
    return {name: tensor[None] for name, tensor in tokens.items()} | placed | {ROWS: _rows(batch)}


def _longer(row: Tensor, width: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(row, (0, width - len(row)), value=fill)


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
