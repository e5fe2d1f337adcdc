"""The files of a run's work directory, by what they hold. A killed run goes on from those that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from bitwright.checkpoint.workdir import WorkDir
from bitwright.formats.base import Format, Packed
from bitwright.measure.ceilings import SAMPLES, Alone
from bitwright.measure.scores import FormatScore, WeightScores
from bitwright.models.spec import BlockId, Weight
from bitwright.plan import Rounding

HEAD_PIECE = "head.safetensors"
ALONE_PIECE = f"alone-{SAMPLES}.json"
MEAN_SQUARE = "mean-square"  # of a weight's inputs, beside its codes


def save_block(
    work: WorkDir,
    block: BlockId,
    scores: Sequence[WeightScores],
    codes: Mapping[str, Sequence[Packed]],
    mean_square: Mapping[str, Tensor],
) -> None:
    """Keep what was found for the weights of one block; with its figures the block counts as finished."""
    tensors = {f"{name}|{MEAN_SQUARE}": mean for name, mean in mean_square.items()}
    for name, formats in codes.items():
        for packed in formats:
            tensors |= {f"{name}|{packed.format.name}|{part}": tensor for part, tensor in packed.tensors.items()}
    work.save_tensors(codes_piece(block), tensors)
    work.save_json(results_piece(block), [asdict(result) for result in scores])


def load_block(work: WorkDir, block: BlockId) -> list[WeightScores]:
    """The figures of one finished block."""
    return [
        WeightScores(m["name"], m["damping"], tuple(_score(score) for score in m["formats"]))
        for m in work.load_json(results_piece(block))
    ]


def _score(data: dict[str, Any]) -> FormatScore:
    return FormatScore(**{**data, "rounding": Rounding(data["rounding"]), "check_by_kind": tuple(data["check_by_kind"])})


def load_codes(work: WorkDir, weight: Weight, format: Format) -> Packed:
    """The calibrated codes of ``weight`` in ``format``, as measured."""
    tensors = work.load_tensors(codes_piece(weight.at), prefix=f"{weight.name}|{format.name}|")
    return Packed(format, (weight.n_rows, weight.n_cols), tensors)


def save_alone(work: WorkDir, seen: Sequence[Alone]) -> None:
    """Keep what was seen of weights that were replaced alone."""
    work.save_json(ALONE_PIECE, [asdict(one) for one in seen])


def load_alone(work: WorkDir) -> list[Alone]:
    """What an earlier run has seen of them."""
    known = work.load_json(ALONE_PIECE) if work.has(ALONE_PIECE) else []
    return [Alone(**{**one, "rounding": Rounding(one["rounding"])}) for one in known]


def load_mean_square(work: WorkDir, weight: Weight) -> Tensor | None:
    """Mean squared inputs [K] of a linear over the rounding fold; None of one that no sample passed."""
    return work.load_tensors(codes_piece(weight.at), prefix=f"{weight.name}|{MEAN_SQUARE}").get("")


def save_batches(work: WorkDir, piece: str, values: Sequence[Tensor | None]) -> None:
    """Keep one tensor for each batch; None where the batch has none."""
    work.save_tensors(piece, {f"{i:05d}": value for i, value in enumerate(values) if value is not None})


def load_batches(work: WorkDir, piece: str, count: int) -> list[Tensor | None]:
    """The tensors of ``count`` batches; those that have none are None."""
    found = work.load_tensors(piece)
    return [found.get(f"{i:05d}") for i in range(count)]


def load_every(work: WorkDir, piece: str, count: int) -> list[Tensor]:
    """The same where every batch has one."""
    return [part for part in load_batches(work, piece, count) if part is not None]


def load_batch(work: WorkDir, piece: str, i: int) -> Tensor:
    """The tensor of the ``i``-th batch."""
    return work.load_tensors(piece, prefix=f"{i:05d}")[""]


def save_rows(work: WorkDir, piece: str, rows: Mapping[str, Sequence[Tensor]]) -> None:
    """Keep what belongs to the tokens of each sample, all samples one after the other."""
    work.save_tensors(piece, {name: torch.cat(list(parts)) for name, parts in rows.items()})


def hidden_piece(block: BlockId) -> str:
    return f"hidden-{block}.safetensors"


def input_piece(block: BlockId) -> str:
    """The input of a block that is not what the block before it returned."""
    return f"input-{block}.safetensors"


def arguments_piece(block: BlockId) -> str:
    """Gradients at what else a block is given."""
    return f"arguments-{block}.safetensors"


def taps_piece(block: BlockId, later: str) -> str:
    """The gradient at a block's output from what lies between its stack and the ``later`` one."""
    return f"taps-{block}-{later}.safetensors"


def input_gradient_piece(block: BlockId) -> str:
    """The gradient at the input of a block that is given more than what the block before it returned."""
    return f"input-gradient-{block}.safetensors"


def glue_piece(stack: str) -> str:
    """Says that gradients have been passed from ``stack`` to the stacks before it."""
    return f"glue-{stack}.json"


def gradient_piece(block: BlockId) -> str:
    return f"gradient-{block}.safetensors"


def largest_piece(block: BlockId) -> str:
    """The largest outputs of the linears of a tower's block."""
    return f"largest-{block}.json"


def results_piece(block: BlockId) -> str:
    return f"block-{block}.json"


def codes_piece(block: BlockId) -> str:
    return f"block-{block}.safetensors"
