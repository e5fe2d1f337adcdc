"""From the user's words to folds of samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitwright.checkpoint.workdir import WorkDir
from bitwright.data.documentation import DOCUMENTATION, documentation
from bitwright.data.folds import MIN_SAMPLES, Folds, fold
from bitwright.data.library_code import CODE, library_code
from bitwright.data.rows import read_texts
from bitwright.data.samples import Sample, cut
from bitwright.data.self_written import write_itself
from bitwright.host.device import precision_of
from bitwright.host.memory import total_nbytes
from bitwright.host.progress import Reporter
from bitwright.models.open import auto_class
from bitwright.models.skeleton import Skeleton
from bitwright.models.spec import ModelSpec
from bitwright.settings import Effort, Settings

SELF = "self"
MIXED, INSTALLED = "mixed", "installed"
SHARES_OF: dict[str, dict[str, int]] = {  # of the sequences, by kind of text
    MIXED: {SELF: 4, DOCUMENTATION: 1, CODE: 1},
    INSTALLED: {DOCUMENTATION: 1, CODE: 1},
}
WORDS = {SELF: "text that the model wrote itself", DOCUMENTATION: "documentation", CODE: "source code"}
SEQUENCES = 128
TOKENS_PER_COLUMN = 3
EFFORT = {Effort.QUICK: 0.25, Effort.NORMAL: 1.0, Effort.THOROUGH: 3.0}
PIECE = "calibration.safetensors"
RESIDENT_SHARE = 1.3  # memory of a model that writes text, over its weights


def sequences_of(settings: Settings, spec: ModelSpec) -> int:
    """How many sequences ``settings.effort`` gives: 128 times its share, or so many more that the widest weight has
    TOKENS_PER_COLUMN tokens for each of its columns times that share."""
    widest = max(weight.n_cols for weight in spec.weights)
    return max(MIN_SAMPLES, round(EFFORT[settings.effort] * max(SEQUENCES, TOKENS_PER_COLUMN * widest / settings.length)))


def calibration_of(settings: Settings, skeleton: Skeleton) -> tuple[str, str]:
    """The calibration source, and a note when it was chosen by the sizes of machine and model, never by what is free now."""
    if settings.calibration:
        return settings.calibration, ""
    needed = int(RESIDENT_SHARE * _nbytes(skeleton))
    room = min(total_nbytes(), settings.max_memory or total_nbytes())
    if needed <= room:
        return MIXED, ""
    return INSTALLED, (
        f"calibrated on documentation and code: a model that writes its own text needs {needed / 1e9:.1f} GB, "
        f"{room / 1e9:.1f} are there"
    )


def calibration_folds(
    skeleton: Skeleton,
    tokenizer: Any,
    calibration: str,
    settings: Settings,
    device: torch.device,
    work: WorkDir,
    reporter: Reporter,
) -> Folds:
    """Folds from ``calibration``: a file, a datasets id, ``self`` (kept in ``work`` once written), ``documentation``, ``code``,
    or a mixture of these (SHARES_OF)."""
    parts = {}
    counts = counts_of(calibration, settings.sequences)
    for kind, count in counts.items():
        if kind == SELF:
            if not work.has(PIECE):
                work.save_tensors(PIECE, {"ids": _self_written(skeleton, tokenizer, count, settings, device, reporter)})
            parts[WORDS[kind]] = [Sample.of(row) for row in work.load_tensors(PIECE)["ids"]]
        else:
            least = min(count, MIN_SAMPLES) if len(counts) > 1 else MIN_SAMPLES
            parts[WORDS.get(kind, kind)] = cut(_texts(kind, tokenizer), tokenizer, count, settings.length, kind, least)
    return fold(parts, settings.seed)


def counts_of(calibration: str, sequences: int) -> dict[str, int]:
    """How many of ``sequences`` come from which text, none of them zero.

    >>> counts_of("mixed", 64)
    {'self': 44, 'documentation': 10, 'code': 10}
    """
    shares = SHARES_OF.get(calibration, {calibration: 1})
    total, left, found = sum(shares.values()), sequences, {}
    for kind, share in reversed(shares.items()):
        found[kind] = max(1, sequences * share // total)
        left -= found[kind]
    first = next(iter(shares))
    found[first] += left
    return {kind: found[kind] for kind in shares}


def _texts(kind: str, tokenizer: Any) -> list[str]:
    if kind == DOCUMENTATION:
        return documentation(0, 2)
    return library_code() if kind == CODE else read_texts(kind, tokenizer)


def _nbytes(skeleton: Skeleton) -> int:
    return sum(ref.nbytes for ref in skeleton.source.checkpoint.refs.values())


def _self_written(
    skeleton: Skeleton, tokenizer: Any, count: int, settings: Settings, device: torch.device, reporter: Reporter
) -> Tensor:
    """Sequences [count, T]. The model is resident in the type that multiplies fastest, if the machine has room for that."""
    dtype = precision_of("auto", device).work
    if RESIDENT_SHARE * _nbytes(skeleton) * dtype.itemsize / 2 > min(total_nbytes(), settings.max_memory or total_nbytes()):
        dtype = torch.bfloat16
    model: Any = auto_class(skeleton.model.config).from_pretrained(
        skeleton.source.checkpoint.directory, dtype=dtype, trust_remote_code=settings.trust_remote_code
    )
    model = model.to(device).eval()
    return write_itself(model, tokenizer, count, settings.length, settings.seed, reporter)
