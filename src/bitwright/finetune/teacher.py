"""What the 16-bit model says about every token of some texts, and of answers about pictures: asked once, kept, learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitwright.data.samples import IDS, Sample
from bitwright.evaluate.reference import DamagedError, Reference, condense
from bitwright.evaluate.reference import load as load_references
from bitwright.evaluate.reference import save as save_references
from bitwright.finetune.inputs import LABELS
from bitwright.finetune.model import adapt, head_of, load
from bitwright.finetune.tokens import IGNORED
from bitwright.finetune.train import DISTRIBUTION
from bitwright.host.progress import Reporter
from bitwright.host.schedule import ASK

CHUNK_ENTRIES = 1 << 25  # logits that exist at once: 128 MiB in float32, since the head may be cast for each of its products
LIKELIEST_TOKENS = 64  # of each distribution; the rest counts as one event


@dataclass(frozen=True)
class Lesson:
    """A text, or a question about a picture with its answer, and what the 16-bit model expects at the positions that count."""

    sample: Sample
    told: Reference


def lessons_of(
    directory: Path, samples: Sequence[Sample], device: torch.device, work: torch.dtype, kept: Path, reporter: Reporter
) -> list[Lesson]:
    """A lesson of each of ``samples``; the model at ``directory`` is loaded unless ``kept`` holds what it said."""
    try:
        told, _ = load_references(kept)
    except (DamagedError, FileNotFoundError):
        told = _asked(directory, samples, device, work, reporter)
        save_references(kept, told, None)
    return [Lesson(sample, one) for sample, one in zip(samples, told, strict=True)]


@torch.no_grad()
def _asked(
    directory: Path, samples: Sequence[Sample], device: torch.device, work: torch.dtype, reporter: Reporter
) -> list[Reference]:
    model = load(directory, device, work)
    adapt(model, ("*",), 0, 0.0, False)
    model.eval()
    head = head_of(model)
    found = []
    for sample in reporter.track(samples, ASK, len(samples)):
        given = {name: tensor.to(device) for name, tensor in sample.alone(work).items()}
        states = model.base_model(**given, use_cache=False).last_hidden_state[0, sample.positions.to(device)]
        ids, parts = given[IDS][0], []
        for start in range(0, len(states), rows := max(1, CHUNK_ENTRIES // head.weight.n_rows)):
            logits = head.logits(states[start : start + rows])
            following = ids[: len(logits)]  # nothing is asked of the likelihood
            parts.append(condense(logits, following, LIKELIEST_TOKENS, samples=0))
        found.append(Reference.join(parts))
    return found


def together(lessons: Sequence[Lesson]) -> dict[str, Tensor]:
    """Several lessons as the inputs of ``loss_of``: rows as long as the longest, what is beyond a text carries no loss."""
    width = max(lesson.sample.n_tokens for lesson in lessons)

    def rows(tensors: list[Tensor], fill: float) -> Tensor:
        return torch.stack([_filled(tensor, width, fill) for tensor in tensors])

    ids = [lesson.sample.ids for lesson in lessons]
    inputs = {"input_ids": rows(ids, 0), "position_ids": torch.arange(width).repeat(len(lessons), 1)}
    inputs[LABELS] = rows(ids, IGNORED)
    return inputs | {name: rows([getattr(lesson.told, name) for lesson in lessons], 0.0) for name in DISTRIBUTION}


def apart(lessons: Sequence[Lesson], dtype: torch.dtype) -> dict[str, Tensor]:
    """The only one of ``lessons`` of a model that sees: classes lay out pixels, and count places, each in its own way.

    ``dtype``: of pixels.
    """
    (lesson,) = lessons
    sample, told = lesson.sample, lesson.told
    labels = torch.full_like(sample.ids, IGNORED)
    labels[sample.positions] = sample.ids[sample.positions]  # which count: what follows them is in the distributions
    found = {LABELS: labels[None]}
    for name in DISTRIBUTION:
        part = getattr(told, name)
        found[name] = part.new_zeros(1, sample.n_tokens, *part.shape[1:])
        found[name][0, sample.positions] = part
    return sample.alone(dtype) | found


def _filled(tensor: Tensor, width: int, fill: float) -> Tensor:
    rest = tensor.new_full((width - len(tensor), *tensor.shape[1:]), fill)
    return torch.cat([tensor, rest])
