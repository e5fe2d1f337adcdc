"""The files of a run's work directory, by what they hold. A killed run goes on from those that are there."""

from __future__ import annotations

from torch import Tensor

from bitwright.checkpoint.workdir import WorkDir
from bitwright.formats.format import Quantized
from bitwright.formats.pack import AnyCodes, codes_from_tensors
from bitwright.measure.recipe import Candidate, Measured
from bitwright.models.spec import Weight

HEAD_PIECE = "head.safetensors"
MEAN_SQUARE = "mean-square"  # of a weight's inputs, beside its codes


def load_block(work: WorkDir, index: int) -> list[Measured]:
    """The results of one finished block."""
    return [
        Measured(m["name"], m["damping"], tuple(Candidate(**c) for c in m["candidates"]))
        for m in work.load_json(results_piece(index))
    ]


def load_codes(work: WorkDir, weight: Weight, format: Quantized) -> AnyCodes:
    """The calibrated codes of ``weight`` in ``format``, as measured."""
    tensors = work.load_tensors(codes_piece(weight.block), prefix=f"{weight.name}|{format.name}|")
    return codes_from_tensors(format, (weight.n_rows, weight.n_cols), tensors)


def load_mean_square(work: WorkDir, weight: Weight) -> Tensor:
    """Mean squared inputs [K] of a linear over the rounding fold."""
    return work.load_tensors(codes_piece(weight.block), prefix=f"{weight.name}|{MEAN_SQUARE}")[""]


def hidden_piece(index: int) -> str:
    return f"hidden-{index:04d}.safetensors"


def gradient_piece(index: int) -> str:
    return f"gradient-{index:04d}.safetensors"


def results_piece(index: int) -> str:
    return f"block-{index:04d}.json"


def codes_piece(index: int) -> str:
    return f"block-{index:04d}.safetensors"
