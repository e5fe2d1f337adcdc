"""What a run will hold at once, and the batch that fits under a ceiling."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil

from bitwright.errors import fail
from bitwright.measure.calibration import SHARES
from bitwright.measure.recipe import Recipe
from bitwright.models.spec import LINEAR, ModelSpec, Weight

WORKSPACE_BYTES = 200 * 2**20  # allocator slack, chunks of logits and of score products


@dataclass(frozen=True)
class Peak:
    """Bytes above the bare libraries, by what they are for."""

    block: int  # the resident block's weights
    boundaries: int  # hidden states and gradients of all sequences
    captured: int  # inputs and output gradients of the scoring folds, and one batch in flight
    moments: int  # plain and weighted second moments of the block, and the factor of the largest
    rounding: int  # the largest weight in all formats
    head: int  # embeddings and head, while no block is measured

    @property
    def nbytes(self) -> int:
        measuring = self.block + self.boundaries + self.captured + self.moments + self.rounding
        return max(measuring, self.head + self.boundaries + self.block) + WORKSPACE_BYTES


def peak(spec: ModelSpec, recipe: Recipe, n_sequences: int, n_tokens: int, itemsize: int, hidden_size: int) -> Peak:
    """The formula of docs/measure.md, checked against a measurement by benchmarks/cost.py."""
    blocks: dict[int, list[Weight]] = {}
    for weight in spec.weights:
        if weight.kind == LINEAR:
            blocks.setdefault(weight.block, []).append(weight)
    largest = max(blocks.values(), key=lambda ws: sum(w.n_rows * w.n_cols for w in ws))
    widths = sum(w.n_rows + w.n_cols for w in largest)
    widest = max(w.n_cols for w in largest)
    biggest = max(w.n_rows * w.n_cols for w in largest)
    scored = (int(n_sequences * sum(SHARES)) + 2) * n_tokens
    batch = min(max(recipe.batch_tokens, n_tokens), n_sequences * n_tokens)
    return Peak(
        block=sum(w.n_rows * w.n_cols for w in largest) * itemsize,
        boundaries=2 * n_sequences * n_tokens * hidden_size * itemsize,
        captured=(scored + 2 * batch) * widths * itemsize,
        moments=4 * (2 * sum(w.n_cols**2 for w in largest) + widest**2),
        rounding=biggest * 4 * (4 + max(len(formats) for formats in recipe.formats.values())),
        head=(spec.kept_nbytes + sum(w.nbytes for w in spec.vocabulary)) * itemsize // 2,
    )


def fit(
    spec: ModelSpec, recipe: Recipe, n_sequences: int, n_tokens: int, itemsize: int, hidden_size: int, ceiling: int | None
) -> Recipe:
    """``recipe`` with the largest batch whose peak stays under ``ceiling`` bytes for the whole process.

    Raises BitwrightError that names the least that works when none does.
    """
    if ceiling is None:
        return recipe
    libraries = psutil.Process().memory_info().rss
    batch = recipe.batch_tokens
    while True:
        candidate = replace(recipe, batch_tokens=batch)
        needed = libraries + peak(spec, candidate, n_sequences, n_tokens, itemsize, hidden_size).nbytes
        if needed <= ceiling:
            return candidate
        if batch <= n_tokens:
            break
        batch //= 2
    raise fail(
        "memory/ceiling",
        "--max-memory",
        saw=f"{ceiling / 1e9:.2f} GB",
        wanted=f"at least {needed / 1e9:.2f} GB, of which {libraries / 1e9:.2f} GB are the libraries",
        help=f"--max-memory {-(-needed // 10**7) / 100:.2f}GB, or less calibration: --sequences {max(6, n_sequences // 2)}",
    )


def available_nbytes() -> int:
    """Memory that the machine can still give."""
    return int(psutil.virtual_memory().available)
