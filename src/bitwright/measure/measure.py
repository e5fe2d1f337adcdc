"""Measure a model: two sweeps, a job for every weight, and the table of what was found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bitwright.checkpoint.output import require_space, write_text
from bitwright.checkpoint.workdir import WorkDir, content_hash
from bitwright.containers.gguf.imatrix import write_imatrix
from bitwright.data.calibration import calibration_folds, calibration_of
from bitwright.data.folds import Folds
from bitwright.data.tokenizer import words_digest
from bitwright.data.viewer import BACKEND
from bitwright.formats.base import Packed
from bitwright.host.places import without_place
from bitwright.host.progress import Reporter
from bitwright.host.schedule import ROUND
from bitwright.host.versions import versions
from bitwright.measure import store
from bitwright.measure.alone import look
from bitwright.measure.ceilings import alone_notes, bounded
from bitwright.measure.overflow import float16_notes
from bitwright.measure.scores import Scored, WeightScores, score
from bitwright.measure.subject import Subject
from bitwright.measure.sweep import Sweep
from bitwright.measure.table import table_of
from bitwright.measure.vocabulary import measure_vocabulary
from bitwright.models.spec import Kind, Weight
from bitwright.plan import Rounding
from bitwright.rounding.kernels.damping import DAMPINGS
from bitwright.sensitivity import Sensitivity

DAMPING_NOTES = 3  # weights that are named; with little calibration there may be many


@dataclass(frozen=True)
class Measurement:
    """A measured model: the table, and the codes that every plan is written from."""

    subject: Subject
    work: WorkDir
    folds: Folds
    sensitivity: Sensitivity
    notes: tuple[str, ...]  # what the run substituted or had to work around

    def packed_of(self, weight: Weight, format: str, rounding: Rounding) -> Packed:
        """The codes of one weight: read from the work directory, or rounded to nearest anew."""
        container = self.subject.container
        chosen = container.format(format)
        if rounding == Rounding.CALIBRATED:
            return store.load_codes(self.work, weight, chosen)
        value = weight.view.matrix(self.subject.source.read(weight.name))
        return Packed.of(container.rounder(chosen).nearest(value, chosen))

    def write_imatrix(self, path: Path) -> None:
        """Write the mean squared inputs of all linears as llama.cpp's importance matrix."""
        source, folds = self.subject.source, self.folds
        known = {w.name: store.load_mean_square(self.work, w) for w in source.spec.weights if w.kind == Kind.LINEAR}
        means = {name: mean for name, mean in known.items() if mean is not None}
        n_tokens = sum(sample.n_tokens for sample in folds.rounding)
        write_imatrix(path, source, means, n_tokens, folds.longest, folds.source)


def measure(subject: Subject, work_root: Path, reporter: Reporter) -> Measurement:
    """Round and score every weight of ``subject`` in every format.

    Codes and figures of each block stay in ``work_root`` under a hash of everything they depend on, from which a killed run
    goes on; ``sensitivity.json`` appears there at the end.
    """
    require_space(work_root, work_nbytes(subject), "the work directory")
    folds, notes = _folds(subject, work_root, reporter)
    sweep = Sweep(subject, folds, WorkDir(work_root, _key(subject, folds)), reporter)
    sweep.prepare()
    left = sweep.unfinished()
    kept = len(sweep.units) - len(left)
    if kept:
        reporter.say(f"{kept} of {len(sweep.units)} blocks are measured already, and kept")
    for block in reporter.track(left, ROUND, len(sweep.units), kept):
        found: list[Scored] = []
        means: dict[str, Tensor] = {}
        for job, mean_square in sweep.jobs(block):
            means[job.name] = mean_square
            found.append(score(job))
            del job  # its traffic and moments, before the next one's are made
        codes = {scored.scores.name: scored.codes for scored in found}
        unseen = [WeightScores(w.name, 0.0, ()) for w in subject.source.spec.weights_at(block) if w.name not in means]
        store.save_block(sweep.work, block, [*(scored.scores for scored in found), *unseen], codes, means)
        sweep.finished(block)
    ends = subject.source.spec.after_blocks
    if subject.source.spec.vocabulary and not sweep.work.has(store.results_piece(ends)):
        measure_vocabulary(sweep, reporter)
    places = (*sweep.units, *((ends,) if subject.source.spec.vocabulary else ()))
    scores = [one for block in places for one in store.load_block(sweep.work, block)]
    table = table_of(subject.name, subject.container, subject.method, subject.source, scores, _provenance(subject, folds))
    notes = (
        subject.notes
        + notes
        + float16_notes(sweep.work, subject.source.spec)
        + _unalone_notes(subject, scores)
        + _damping_notes(scores)
    )
    measured = _with_large_seen(Measurement(subject, sweep.work, folds, table, notes), reporter)
    write_text(work_root / "sensitivity.json", measured.sensitivity.to_json())
    return measured


def _with_large_seen(found: Measurement, reporter: Reporter) -> Measurement:
    """The same with the largest damages measured directly."""
    seen = look(found.sensitivity, found.subject, found.folds.choosing, found.packed_of, found.work, reporter)
    return replace(found, sensitivity=bounded(found.sensitivity, seen), notes=found.notes + alone_notes(seen))


def _folds(subject: Subject, work_root: Path, reporter: Reporter) -> tuple[Folds, tuple[str, ...]]:
    """The calibration samples, and a note where their source was chosen by size."""
    settings, device = subject.settings, subject.device
    calibration, why = calibration_of(settings, subject.skeleton)
    fingerprint = subject.source.checkpoint.fingerprint
    pixels = subject.viewer.key() if subject.viewer else None
    spoken = words_digest(subject.source.checkpoint.directory)
    text = content_hash(
        fingerprint, spoken, calibration, settings.sequences, settings.length, settings.seed, device.type, versions(), pixels
    )
    work = WorkDir(work_root, text)
    folds = calibration_folds(
        subject.skeleton, subject.tokenizer, calibration, settings, device, work, reporter, subject.viewer
    )
    return folds, ((why,) if why else ())


def _key(subject: Subject, folds: Folds) -> str:
    """Hash of everything that codes and figures depend on."""
    fingerprint, device = subject.source.checkpoint.fingerprint, subject.device.type
    return content_hash(fingerprint, folds.key, str(subject.precision), device, subject.method.key(), versions())


def _provenance(subject: Subject, folds: Folds) -> dict[str, Any]:
    return {
        "versions": versions(),
        "fingerprint": subject.source.checkpoint.fingerprint,
        "seed": subject.settings.seed,
        "calibration": without_place(folds.source),
        "kinds": list(dict.fromkeys(folds.kinds)),
        "sequences": len(folds.all),
        "length": folds.longest,
        "calibration_hash": folds.key,
        "dtype": str(subject.precision.work),
        "device": subject.device.type,
        **({"pixels": f"{BACKEND} {subject.viewer.key()}"} if subject.viewer else {}),
    }


def work_nbytes(subject: Subject) -> int:
    """What a measurement keeps in its work directory: the codes of all formats, and the boundaries."""
    spec, settings = subject.source.spec, subject.settings
    codes = sum(
        subject.container.nbytes(weight, format, subject.source)
        for weight in spec.weights
        for format in subject.method.formats[weight.name]
    )
    patches = subject.viewer.patches() if subject.viewer else 0
    n_rows = dict.fromkeys((stack.name for stack in spec.stacks), patches) | {spec.text.name: settings.length}
    boundaries = sum((stack.n_blocks + 2) * n_rows[stack.name] * stack.width for stack in spec.stacks)
    boundaries *= settings.sequences * subject.precision.kept.itemsize
    return codes + boundaries


def _unalone_notes(subject: Subject, found: list[WeightScores]) -> tuple[str, ...]:
    """Weights that no calibration sample passed, part by part."""
    measurable = {name for name, formats in subject.method.formats.items() if formats}
    unseen = {one.name for one in found if not one.formats and one.name in measurable}
    parts = Counter(weight.group for weight in subject.source.spec.weights if weight.name in unseen)
    return tuple(f"{part}: {n} weights took no part in the calibration and stay in 16 bit" for part, n in parts.items())


def _damping_notes(found: list[WeightScores]) -> tuple[str, ...]:
    usual = DAMPINGS[-1]
    damped = sorted((scores for scores in found if scores.damping > usual), key=lambda scores: -scores.damping)
    notes = [f"{one.name}: second moment needed damping {one.damping:g}" for one in damped[:DAMPING_NOTES]]
    if len(damped) > DAMPING_NOTES:
        notes.append(f"{len(damped) - DAMPING_NOTES} more weights needed more damping than {usual:g}: sensitivity.json has all")
    return tuple(notes)
