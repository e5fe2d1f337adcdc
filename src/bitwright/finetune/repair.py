"""A finished quantization is trained on, against the 16-bit model's distributions, in the format that it is stored in.

Codes, scales and minima start where calibration left them; straight-through training moves those that help (quantization-aware
training). The new file replaces the old one only where a fresh process finds it closer to the 16-bit model, on texts, and
answers about pictures, that nothing here was trained on.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.checkpoint.output import PROOF, Output, beside, owned, write_json
from bitwright.checkpoint.workdir import WorkDir, content_hash
from bitwright.data.calibration import calibration_folds, calibration_of
from bitwright.data.held_out import held_out, require_unseen
from bitwright.data.probe import Probe
from bitwright.data.samples import Sample
from bitwright.errors import fail
from bitwright.evaluate.divergence import bootstrap_interval
from bitwright.evaluate.evaluate import Candidate, compare
from bitwright.evaluate.figures import Divergence
from bitwright.finetune.card import draw_losses
from bitwright.finetune.finished import Finished, fits_kept, trained_codes
from bitwright.finetune.loss import OTHERS
from bitwright.finetune.snapped import RATES, SnappedLinear
from bitwright.finetune.teacher import LIKELIEST_TOKENS, Lesson, apart, lessons_of, together
from bitwright.finetune.train import TRAIN, loss_of, recompute, train
from bitwright.host.device import reference_dtype
from bitwright.host.heap import release_models
from bitwright.host.packages import require_package
from bitwright.host.progress import Reporter
from bitwright.host.schedule import ASK, COMPARE
from bitwright.host.versions import versions
from bitwright.measure.subject import Subject
from bitwright.models.spec import PROJECTOR, TEXT
from bitwright.models.stacks import VISION
from bitwright.report.later import tell_later
from bitwright.settings import Settings

SEQUENCES = 512  # of training text
STEP_TOKENS = 2048
LEARNING_RATE = 3e-3  # of codes, in steps between two levels
CODES_BELOW = (
    4.0  # bits a weight; of finer formats a short training moves more codes by chance than by what they gain (docs/LOG.md)
)
BETA2 = 0.95  # of Adam: runs are short
PROVING_SECONDS = 90.0  # kept for writing and comparing, of a budget, or if that is more:
PROVING_PASSES = 4.0  # times what the 16-bit model takes to say what follows in the held-out samples
LEAST_STEPS = 10
BEFORE, AFTER = "before", "repaired"
TEACHER = "teacher.safetensors"


@dataclass(frozen=True)
class Repaired:
    """What came of it: KL divergence in nats from the 16-bit model on held-out samples."""

    before: Divergence
    after: Divergence
    steps: int
    losses: tuple[tuple[int, float], ...]  # on what was trained on, by step
    seconds: float

    @property
    def ratio(self) -> float:
        return self.after.kl / self.before.kl if self.before.kl else math.nan

    @property
    def kept(self) -> bool:
        """Whether the new file was closer beyond chance, and took the old one's place."""
        return self.gain[0] > 0

    @property
    def gain(self) -> tuple[float, float]:
        """95 % interval of the mean difference before - after, over the same samples, each as much as it has tokens."""
        tokens = torch.tensor(self.before.tokens_of_sequence, dtype=torch.float64)
        before, after = (torch.tensor(d.kl_of_sequence, dtype=torch.float64) for d in (self.before, self.after))
        return bootstrap_interval((before - after) * tokens / tokens.mean())


def repair(
    out: str | Path,
    source: str = "",
    *,
    minutes: float = 30.0,
    steps: int = 0,
    rank: int = 0,
    learning_rate: float | None = None,
    codes_below: float = CODES_BELOW,
    settings: Settings | None = None,
    workdir: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Repaired:
    """Train the codes of the checkpoint ``out`` against its 16-bit model; replace it where that came closer beyond chance.

    Args:
        out: What ``quantize`` wrote: a directory or a .gguf file.
        source: Its 16-bit model, where that is not the name in its plan.
        minutes: How long it may take in all.
        steps: So many steps, instead of as many as there is time for.
        rank: More than 0: low-rank changes instead of whole weights, for models whose weights are too many to be trained.
        learning_rate: Of codes, in steps between two levels; LEARNING_RATE where it is left out. RATES of it for the others.
        codes_below: Codes of weights that take this many bits or more stay, and their scales and minima are trained.
        settings: What is trained on, what is held out, device and the like.
        workdir: Where a killed run goes on. Default: a hidden folder beside ``out``, removed at the end.
        reporter: Shows progress. Default: on the terminal.

    Returns:
        KL divergence from 16 bit before and after, and whether the new file was kept.

    Raises:
        BitwrightError: A checkpoint that is not ours, another source, or no time for ten steps.

    Example:
        >>> found = bitwright.repair("demo-2bit", minutes=30)  # doctest: +SKIP
        >>> found.before.kl, found.after.kl  # doctest: +SKIP
        (1.016, 0.589)
    """
    started, reporter, out = time.monotonic(), reporter or Reporter(), Path(out)
    require_package("finetune/package", "repair", "accelerate", "transformers' Trainer needs it")
    settings = settings or Settings(held_out_sequences=16)
    settings = replace(settings, sequences=settings.sequences or SEQUENCES)
    learning_rate = LEARNING_RATE if learning_rate is None else learning_rate
    is_file = out.is_file()
    work_root = Path(workdir) if workdir else out.absolute().parent / f".{out.name}.repair"
    with Output(out, is_file, overwrite=True).claimed() as claim, owned(work_root, out, ours=not workdir):
        finished = Finished.open(out, source, settings)
        subject = finished.subject
        for note in subject.notes:
            reporter.say(f"note: {note}")
        require_unseen(settings.held_out, settings.calibration, subject.tokenizer)
        probe = held_out(
            subject.tokenizer, settings.held_out, settings.held_out_sequences, settings.held_out_length, subject.viewer
        ).counted
        reporter.kept = work_root
        reporter.plan({ASK: 1.0, TRAIN: 10.0, COMPARE: 2.0}, within=math.inf if steps else 60 * minutes)
        lessons, key, each = _lessons(finished, work_root, reporter)
        budget = (steps, 0.0 if steps else minutes)
        folder = WorkDir(work_root, _key(finished, settings, (rank, learning_rate, codes_below), budget, key)).directory
        torch.manual_seed(settings.seed)
        work = subject.precision.work
        parts = (TEXT, VISION, PROJECTOR) if subject.viewer else (TEXT,)
        model = finished.model(work, rank, codes_below=codes_below, parts=parts)
        if fine := sum(isinstance(layer, SnappedLinear) and layer.steps is None for layer in model.modules()):
            reporter.say(f"note: {fine} weights take {codes_below:g} bits or more: their codes stay, their scales are trained")
        step = _Step.of(subject, settings)
        proving = max(PROVING_SECONDS, PROVING_PASSES * each * len(probe.samples))
        left = 60 * minutes - proving - (time.monotonic() - started)
        recomputed = step.apart or not fits_kept(model, step.batch * settings.length)  # patches are not counted
        count = steps or _steps_within(model, step.trial(lessons), left, recomputed, folder / "steps.json", proving)
        losses = train(
            model,
            lessons,
            step.collate,
            folder,
            reporter,
            rates=RATES,
            recomputed=recomputed,
            alike=step.apart,
            per_device_train_batch_size=step.at_once,
            gradient_accumulation_steps=step.batch // step.at_once,
            learning_rate=learning_rate,
            adam_beta2=BETA2,
            max_steps=count,
            seed=settings.seed,
        )
        made = folder / "made" / out.name
        shutil.rmtree(made.parent, ignore_errors=True)
        (made.parent if is_file else made).mkdir(parents=True)
        finished.write(made, trained_codes(model))
        del model
        release_models()
        before, after = _compared(subject, out, made, probe, work_root, reporter)
        seconds = round(time.monotonic() - started, 1)
        found = Repaired(before, after, losses[-1][0], losses, seconds)
        if found.kept:
            _tell(made, found)
            with claim.made() as place:
                target = place.parent if is_file else place
                for path in (made.parent if is_file else made).iterdir():
                    shutil.move(path, target / path.name)  # the work directory may lie on another disk
    if not workdir:
        shutil.rmtree(work_root, ignore_errors=True)
    return found


@dataclass(frozen=True)
class _Step:
    """How a step of training is made of ``batch`` lessons.

    Those of a model that sees are a pass each, and count the same however many tokens of theirs count: an answer has few.
    """

    batch: int
    apart: bool
    collate: Callable[[Any], dict[str, Tensor]]

    @classmethod
    def of(cls, subject: Subject, settings: Settings) -> _Step:
        batch, seeing = max(1, STEP_TOKENS // settings.length), len(subject.source.spec.stacks) > 1
        return cls(batch, seeing, partial(apart, dtype=subject.precision.work) if seeing else together)

    @property
    def at_once(self) -> int:
        """Lessons of a pass."""
        return 1 if self.apart else self.batch

    def trial(self, lessons: Sequence[Lesson]) -> Iterator[dict[str, Tensor]]:
        """The passes of one step, of lessons of every kind."""
        some = lessons[:: max(1, len(lessons) // self.batch)][: self.batch]
        return (self.collate(some[i : i + self.at_once]) for i in range(0, len(some), self.at_once))


def _key(finished: Finished, settings: Settings, asked: tuple[float, ...], budget: tuple[int, float], lessons: str) -> str:
    """Hash of everything that the training depends on. ``budget``: steps, or minutes, over which the learning rate falls."""
    plan, fingerprint = finished.plan.to_dict(), finished.subject.source.checkpoint.fingerprint
    numbers = (STEP_TOKENS, OTHERS, RATES, BETA2, *asked, budget)
    return content_hash(plan, fingerprint, finished.digest(), asdict(settings), numbers, lessons, versions())


def _lessons(finished: Finished, work_root: Path, reporter: Reporter) -> tuple[list[Lesson], str, float]:
    """What is learnt, its hash, and the seconds that the 16-bit model took for each; 0 where it had said it before."""
    subject = finished.subject
    settings = subject.settings
    calibration, why = calibration_of(settings, subject.skeleton)
    if why:
        reporter.say(f"note: {why}")
    fingerprint, pixels = subject.source.checkpoint.fingerprint, subject.viewer.key() if subject.viewer else None
    work = WorkDir(work_root, content_hash("samples", fingerprint, pixels, asdict(settings), versions()))
    folds = calibration_folds(
        subject.skeleton, subject.tokenizer, calibration, settings, subject.device, work, reporter, subject.viewer
    )
    samples: Sequence[Sample] = folds.all
    key = content_hash("teacher", fingerprint, folds.key, LIKELIEST_TOKENS, str(subject.precision), versions())
    kept = WorkDir(work_root, key).path(TEACHER)
    begun, known = time.monotonic(), kept.exists()
    lessons = lessons_of(finished.directory, samples, subject.device, subject.precision.work, kept, reporter)
    return lessons, key, 0.0 if known else (time.monotonic() - begun) / len(lessons)


def _steps_within(
    model: Any, trial: Iterator[dict[str, Tensor]], seconds: float, recomputed: bool, kept: Path, proving: float
) -> int:
    """How many steps like ``trial`` fit into ``seconds``, by a trial of two; a run that goes on takes as many as before.

    ``proving``: seconds that comparing takes, for what is said where there is no room.
    """
    if kept.exists():
        return int(json.loads(kept.read_text(encoding="utf-8")))
    if recomputed:
        recompute(model)
    model.train()
    device = next(model.parameters()).device
    passes, spent = list(trial), list[float]()
    for _ in range(2):
        begin = time.monotonic()
        for inputs in passes:
            loss_of(model, {name: tensor.to(device) for name, tensor in inputs.items()}).backward()
        spent.append(time.monotonic() - begin)
    model.zero_grad(set_to_none=True)
    count = int(seconds / (1.15 * min(spent)))  # the optimizer comes on top
    if count < LEAST_STEPS:
        raise fail(
            "finetune/no-time",
            "--minutes",
            saw=f"room for {max(count, 0)} steps of {min(spent):.0f} s",
            wanted=f"at least {LEAST_STEPS}",
            help=f"--minutes {math.ceil((proving + 1.3 * LEAST_STEPS * min(spent)) / 60) + 1}",
        )
    write_json(kept, count)
    return count


def _compared(
    subject: Subject, old: Path, new: Path, probe: Probe, work_root: Path, reporter: Reporter
) -> tuple[Divergence, Divergence]:
    """Both files against the 16-bit model, in fresh processes."""
    directory = str(subject.source.checkpoint.directory)
    before, after = compare(
        Candidate("16 bit", directory, dtype=reference_dtype(subject.device)),
        [Candidate(BEFORE, str(old)), Candidate(AFTER, str(new))],
        probe,
        device=str(subject.device),
        reporter=reporter,
        stage=COMPARE,
        scratch=work_root,
        references=work_root / "references",
        fingerprint=subject.source.checkpoint.fingerprint,
    )
    return before, after


def _tell(made: Path, found: Repaired) -> None:
    """Note in the texts beside the weights what they are now."""
    low, high = found.gain
    proof = beside(made, PROOF)
    told = json.loads(proof.read_text(encoding="utf-8"))
    figures = {"kl_before": found.before.kl, "kl_after": found.after.kl, "gain_low": low, "gain_high": high}
    told["repaired"] = [*told.get("repaired", []), {**figures, "steps": found.steps, "seconds": found.seconds}]
    write_json(proof, told)
    nats = f"{found.before.kl:.4f} nats before, {found.after.kl:.4f} after"
    section = (
        f"\n## Repaired\n\nTrained on for {found.steps} steps after the comparison above, in its own format and against "
        f"the 16-bit model's distributions: KL divergence {found.before.kl:.4f} before, {found.after.kl:.4f} after, on "
        f"{found.after.n_sequences} samples that training did not see.\n{draw_losses(made, found.losses)}"
    )
    tell_later(made, f"All figures here are of this file before {found.steps} steps of training in its format: {nats}", section)
