"""From the user's words to folds of samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitwright.checkpoint.workdir import WorkDir
from bitwright.data.documentation import DOCUMENTATION, documentation
from bitwright.data.folds import MIN_SAMPLES, Folds, fold
from bitwright.data.rows import read_texts
from bitwright.data.samples import Sample, cut
from bitwright.data.self_written import write_itself
from bitwright.host.memory import total_nbytes
from bitwright.host.progress import Reporter
from bitwright.models.skeleton import Skeleton
from bitwright.settings import Settings

SELF = "self"
PIECE = "calibration.safetensors"
RESIDENT_SHARE = 1.3  # memory of a model that writes text, over its weights


def calibration_of(settings: Settings, skeleton: Skeleton) -> tuple[str, str]:
    """The calibration source, and a note when it was chosen by the sizes of machine and model, never by what is free now."""
    if settings.calibration:
        return settings.calibration, ""
    needed = int(RESIDENT_SHARE * sum(ref.nbytes for ref in skeleton.source.checkpoint.refs.values()))
    room = min(total_nbytes(), settings.max_memory or total_nbytes())
    if needed <= room:
        return SELF, ""
    return DOCUMENTATION, (
        f"calibrated on documentation text: a model that writes its own needs {needed / 1e9:.1f} GB, {room / 1e9:.1f} are there"
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
    """Folds from ``calibration``: a file, a datasets id, ``documentation``, or ``self`` (kept in ``work`` once written)."""
    if calibration == SELF:
        if not work.has(PIECE):
            work.save_tensors(PIECE, {"ids": _self_written(skeleton, tokenizer, settings, device, reporter)})
        written = [Sample.of(row) for row in work.load_tensors(PIECE)["ids"]]
        return fold(written, "text that the model wrote itself", settings.seed)
    texts = documentation(0, 2) if calibration == DOCUMENTATION else read_texts(calibration, tokenizer)
    samples = cut(texts, tokenizer, settings.sequences, settings.length, calibration, MIN_SAMPLES)
    return fold(samples, calibration, settings.seed)


def _self_written(skeleton: Skeleton, tokenizer: Any, settings: Settings, device: torch.device, reporter: Reporter) -> Tensor:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        skeleton.source.checkpoint.directory, dtype=torch.bfloat16, trust_remote_code=settings.trust_remote_code
    )
    model = model.to(device).eval()
    return write_itself(model, tokenizer, settings.sequences, settings.length, settings.seed, reporter)
