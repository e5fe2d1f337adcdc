"""A 16-bit model is quantized before an adapter is trained beside it (QLoRA, arXiv 2305.14314), by a plan of its own."""

from __future__ import annotations

import os
from pathlib import Path

from bitwright.checkpoint.open import local_directory, open_checkpoint
from bitwright.checkpoint.output import PROOF, beside
from bitwright.checkpoint.result import plan_of
from bitwright.data.tokenizer import tokenizer_of
from bitwright.errors import fail
from bitwright.finetune.base import is_packed
from bitwright.finetune.texts import require_sound, texts_of
from bitwright.finetune.training import OF_A_BASE, Training
from bitwright.host.progress import Reporter
from bitwright.pipeline import quantize
from bitwright.settings import Settings


def packed(model: str | Path, data: str, out: Path, training: Training, reporter: Reporter) -> str:
    """The model to train beside: ``model`` where it is quantized already, else what is made of it in four bits.

    That is kept at ``training.base``, or beside ``out``; one that is there is taken again. Raises BitwrightError, before
    anything slow, for data that nothing can be learnt from, and for another model at that place.
    """
    if is_packed(model):
        if unused := training.given(*OF_A_BASE):
            saw = f"{', '.join(unused)}, and a model that is quantized already"
            raise fail("finetune/unused", model, saw=saw, wanted="a 16-bit model", help=f"leave out {' '.join(unused)}")
        return str(model)
    base = Path(os.path.expanduser(training.base)) if training.base else out.with_name(f"{out.name}-base")
    if beside(base, PROOF).exists():
        _require_made_of(base, model)
        reporter.say(f"{base} is made already, and taken")
        return str(base)
    directory = local_directory(model)
    tokenizer = tokenizer_of(directory)
    require_sound(texts_of(data, directory, tokenizer, training), directory, tokenizer, training.length)
    reporter.say(f"{model} is in 16 bit: it is quantized first, into {base}")
    settings = Settings(device=training.device, dtype=training.dtype, seed=training.seed, compare=False)
    quantize(model, base, training.budget, plan=training.plan or None, settings=settings, reporter=reporter)
    return str(base)


def _require_made_of(base: Path, model: str | Path) -> None:
    """Raise BitwrightError unless the checkpoint at ``base`` was made of ``model``."""
    if plan_of(base).provenance.get("fingerprint") != open_checkpoint(model).fingerprint:
        raise fail(
            "finetune/other-base",
            base,
            saw="a quantized model that was made of other weights",
            wanted=f"one of {model}, or nothing",
            help="--base DIRECTORY names another place",
        )
