"""What a run will hold at once, and the batch that fits under a ceiling."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bitwright.data.folds import SHARES
from bitwright.errors import fail
from bitwright.host.device import Precision
from bitwright.measure.method import Method
from bitwright.measure.moments import rows_may_share
from bitwright.models.spec import BlockId, Kind, ModelSpec, Weight
from bitwright.settings import Settings

WORKSPACE_BYTES = 200 * 2**20  # allocator slack, chunks of logits and of score products
# Resident in a process that has imported torch, transformers and bitsandbytes, and nothing else (benchmarks/cost.py). A
# constant, so that the batch depends on model and ceiling alone and a resumed run finds its pieces.
LIBRARIES_BYTES = 700 * 2**20


@dataclass(frozen=True)
class Peak:
    """Bytes above the bare libraries, by what they are for."""

    block: int  # the resident block's weights
    boundaries: int  # hidden states and gradients of all sequences
    captured: int  # inputs and output gradients of the scoring folds, and one batch in flight
    moments: int  # second moments of the block: plain, whose place a factor takes, weighted, and of output gradients
    rounding: int  # the largest weight in all formats
    head: int  # embeddings and head, while no block is measured

    @property
    def nbytes(self) -> int:
        measuring = self.block + self.boundaries + self.captured + self.moments + self.rounding
        return max(measuring, self.head + self.boundaries + self.block) + WORKSPACE_BYTES


def peak(spec: ModelSpec, method: Method, settings: Settings, precision: Precision, patches: int = 0) -> Peak:
    """The formula of docs/measure.md, checked against a measurement by benchmarks/cost.py. ``patches``: rows that a vision
    tower is given for one sample. It is the block that takes most."""
    ends = sum(w.nbytes for w in spec.vocabulary)
    blocks: dict[BlockId, list[Weight]] = {}
    for weight in spec.weights:
        if weight.kind == Kind.LINEAR:
            blocks.setdefault(weight.at, []).append(weight)
    width = {stack.name: stack.width for stack in spec.stacks}
    rows = dict.fromkeys(width, patches) | {spec.text.name: settings.length}
    boundary = max(rows[name] * width[name] for name in width)
    of_blocks = [_of_block(weights, rows.get(at.stack, patches), method, settings, precision) for at, weights in blocks.items()]
    return replace(
        max(of_blocks, key=lambda found: found.nbytes),
        boundaries=2 * settings.sequences * boundary * precision.kept.itemsize,
        head=spec.kept_nbytes + ends,  # both ends stay in 16 bit
    )


def _of_block(weights: list[Weight], n_tokens: int, method: Method, settings: Settings, precision: Precision) -> Peak:
    """What the measurement of one block takes whose samples have ``n_tokens`` tokens, or patches."""
    kept, work, n_sequences = precision.kept.itemsize, precision.work.itemsize, settings.sequences
    widths = sum(w.n_rows + w.n_cols for w in weights)
    sharing = [w for w in weights if rows_may_share(w.n_rows, w.n_cols)]
    scored = (int(n_sequences * sum(SHARES)) + 2) * n_tokens
    batch = min(max(method.batch_tokens, n_tokens), n_sequences * n_tokens)
    return Peak(
        block=sum(w.n_rows * w.n_cols for w in weights) * work,
        boundaries=0,
        captured=(scored * kept + 2 * batch * work) * widths,
        moments=4 * (2 * sum(w.n_cols**2 for w in weights) + sum(w.n_rows**2 for w in sharing)),
        rounding=max(w.n_rows * w.n_cols for w in weights) * 4 * (4 + max(len(f) for f in method.formats.values())),
        head=0,
    )


def fit(spec: ModelSpec, method: Method, settings: Settings, precision: Precision, patches: int = 0) -> Method:
    """``method`` with the largest batch whose peak stays under ``settings.max_memory`` bytes for the whole process.
    ``patches``: as in ``peak``.

    Raises BitwrightError that names the least that works when none does.
    """
    if settings.max_memory is None:
        return method
    batch = method.batch_tokens
    while True:
        candidate = replace(method, batch_tokens=batch)
        needed = LIBRARIES_BYTES + peak(spec, candidate, settings, precision, patches).nbytes
        if needed <= settings.max_memory:
            return candidate
        if batch <= settings.length:
            break
        batch //= 2
    raise fail(
        "memory/ceiling",
        "--max-memory",
        saw=f"{settings.max_memory / 1e9:.2f} GB",
        wanted=f"at least {needed / 1e9:.2f} GB, of which {LIBRARIES_BYTES / 1e9:.2f} GB are the libraries",
        help=f"--max-memory {-(-needed // 10**7) / 100:.2f}GB, or less calibration: "
        f"--sequences {max(6, settings.sequences // 2)}",
    )
