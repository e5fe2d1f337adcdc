"""Fine-tuning in the format that is written (quantization-aware training): no adapter is left, and nothing is lost by merging.

In every pass each weight is what its file will hold, so that the trained model and the written one are the same codes.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from bitwright.checkpoint.output import PROOF, Output, beside, owned, write_json
from bitwright.checkpoint.workdir import content_hash, finite
from bitwright.containers.registry import require_suffix
from bitwright.finetune.answers import by_program, held, unlike
from bitwright.finetune.card import draw_losses, trained_section
from bitwright.finetune.finished import Finished, fits_kept, trained_codes
from bitwright.finetune.inputs import Layout
from bitwright.finetune.snapped import RATES
from bitwright.finetune.survival import moved
from bitwright.finetune.texts import require_sound, texts_of, told_of
from bitwright.finetune.train import TRAIN, train
from bitwright.finetune.training import AFTER, BEFORE, QAT, WRITTEN, AsWritten, Outcome, Training
from bitwright.host.heap import release_models
from bitwright.host.progress import Reporter
from bitwright.host.texts import read_object
from bitwright.host.versions import versions
from bitwright.report.later import tell_later
from bitwright.settings import Settings


def finetune_in_format(
    model: Path, data: str, out: Path, training: Training, workdir: Path | None, overwrite: bool, reporter: Reporter
) -> Outcome:
    """Train the checkpoint ``model`` that ``quantize`` wrote on ``data``, and write it with its new codes to ``out``.

    Formats and size stay as they are. ``Outcome.after`` is what the written file answers, in a fresh process.
    """
    started = time.monotonic()
    settings = Settings(device=training.device, dtype=training.dtype, seed=training.seed)
    work_root = workdir or out.absolute().parent / f".{out.name}.work"
    with Output(out, model.is_file(), overwrite).claimed() as claim, owned(work_root, out, ours=not workdir):
        finished = Finished.open(model, training.source, settings)
        require_suffix(out, finished.subject.container)
        subject, tokenizer = finished.subject, finished.subject.tokenizer
        texts = texts_of(data, finished.directory, tokenizer, training)
        require_sound(texts, finished.directory, tokenizer, training.length)
        for line in told_of(texts, training, finished.directory):
            reporter.say(line)
        torch.manual_seed(training.seed)
        work = subject.precision.work
        below = math.inf if training.method == QAT else 0.0
        ready = finished.model(work, training.rank, training.strength, below, training.targets, training.train)
        reporter.kept = work_root
        count = len(texts.kept)
        reporter.plan({BEFORE: count, TRAIN: training.passes(len(texts.learnt)), AFTER: count, WRITTEN: 2 * count})
        layout = Layout.of(ready, work)
        before = held(ready, texts.kept, training.batch, layout, reporter, BEFORE)
        key = content_hash(finished.digest(), texts.key(), replace(training, source="").told(), versions())
        fits = fits_kept(ready, training.batch * max(len(text.ids) for text in texts.learnt))
        losses = train(
            ready,
            texts.learnt,
            layout,
            work_root / key,
            reporter,
            rates=RATES if training.method == QAT else None,
            recomputed=texts.pictured or not fits,  # patches are not counted
            **training.of_trainer(texts.pictured),
        )
        n_trained = sum(p.numel() for p in ready.parameters() if p.requires_grad)
        trained = held(ready, texts.kept, training.batch, layout, reporter, AFTER)
        codes = trained_codes(ready)
        del ready
        release_models()
        with claim.made() as place:
            finished.write(place, codes)
            after = by_program(place, texts.kept, subject.device, work_root, reporter, WRITTEN, finished.directory)
            seconds = round(time.monotonic() - started, 1)
            if note := unlike(before, trained, after):
                reporter.say(note)
            share = moved(finished.packed, codes)
            written = AsWritten(count, trained, after) if count else None
            outcome = Outcome(before, after, losses[-1][0], losses, n_trained, len(texts.learnt), seconds, share, written)
            proof = beside(place, PROOF)
            write_json(proof, finite(read_object(proof) | {"training": training.told(), "outcome": asdict(outcome)}))
            words = f"All figures here are of the checkpoint before it learnt from {outcome.n_texts:,} texts"
            tell_later(place, words, trained_section(data, training, outcome) + draw_losses(place, losses))
        if not workdir:
            shutil.rmtree(work_root, ignore_errors=True)
        return outcome
