"""The proof of a written checkpoint: a fresh process measures it and its rivals, and the better one is shipped."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from bitwright.checkpoint.output import atomic_outputs
from bitwright.checkpoint.workdir import content_hash
from bitwright.containers.rivals import Rival
from bitwright.data.held_out import held_out
from bitwright.data.probe import Probe
from bitwright.evaluate.evaluate import Candidate, PartlyComparedError, compare
from bitwright.evaluate.figures import Divergence
from bitwright.evaluate.talk import QUESTIONS, prompt_of
from bitwright.evaluate.verdict import Contender, Verdict, judge
from bitwright.formats.base import Packed
from bitwright.host.clock import Stage
from bitwright.host.device import reference_dtype
from bitwright.host.places import without_place
from bitwright.host.progress import Reporter
from bitwright.host.schedule import CHECK, COMPARE, WRITE
from bitwright.measure.measure import Measurement
from bitwright.models.spec import Weight
from bitwright.plan import NOISE_FLOOR, Plan, Rounding
from bitwright.report.report import Report
from bitwright.report.said import Said
from bitwright.report.seen import Seen

RESULT = "bitwright"
ASKED = 256  # tokens of a question, at most


@dataclass(frozen=True)
class Proof:
    """Compares written files with the 16-bit model in fresh processes."""

    measured: Measurement
    rivals: list[Rival]
    work_root: Path
    reporter: Reporter

    @classmethod
    def of(cls, measured: Measurement, plan: Plan, work_root: Path, reporter: Reporter) -> Proof:
        """The proof of ``plan`` beside all that its container names as rivals."""
        subject = measured.subject
        rivals = subject.container.rivals(subject.source.spec, measured.sensitivity, plan, subject.settings.compare)
        return cls(measured, rivals, work_root, reporter)

    def write(self, plan: Plan, place: Path) -> None:
        """Write ``plan`` at ``place`` and every rival that is not there yet, in one pass over the source.

        Each rival appears whole or not at all.
        """
        rivals = self.missing()
        for path in rivals:
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_outputs(list(rivals), bool(self.measured.subject.container.suffix)) as places:
            write(self.measured, {place: plan, **dict(zip(places, rivals.values(), strict=True))}, self.reporter)

    def missing(self) -> dict[Path, Plan]:
        """Rivals that have to be written."""
        places = {self._place(rival): rival.plan for rival in self.rivals if not rival.from_source}
        return {path: plan for path, plan in places.items() if not path.exists()}

    def verdict(self, plan: Plan, path: Path, may_replace: bool = True) -> Verdict:
        """Measure the files at ``path`` and all rivals on held-out text, and judge.

        ``may_replace``: whether a uniform choice that measures better takes the result's place.
        """
        probe = self._probe
        asked = {RESULT, self.measured.sensitivity.stock, NOISE_FLOOR}
        result = Contender(Candidate(RESULT, str(path)), plan.nbytes, plan.check_nats, False, plan)
        rivals = [self._contender(rival, bool(probe.pictures) or rival.label in asked) for rival in self.rivals]
        contenders, notes = [result, *rivals], tuple[str, ...]()
        try:
            divergences = self._on(probe, [contender.candidate for contender in contenders], COMPARE)
        except PartlyComparedError as error:
            kept, stock = sorted(error.divergences), self.measured.sensitivity.stock
            if not {RESULT, stock} <= {contenders[i].label for i in kept}:  # without these two there is no verdict
                raise
            notes = tuple(f"could not be run: {contenders[i].label}: {lost.saw}" for i, lost in error.failures.items())
            contenders, divergences = [contenders[i] for i in kept], [error.divergences[i] for i in kept]
        verdict = judge(contenders[0], contenders[1:], divergences, self.measured.sensitivity.stock, may_replace)
        return replace(verdict, notes=notes)

    @cached_property
    def _probe(self) -> Probe:
        subject = self.measured.subject
        settings = subject.settings
        found = held_out(
            subject.tokenizer, settings.held_out, settings.held_out_sequences, settings.held_out_length, subject.viewer
        )
        if found.pictures:
            return found
        asked = [prompt_of([{"role": "user", "content": question}], subject.tokenizer, ASKED) for question in QUESTIONS]
        return replace(found, prompts=tuple(asked))

    def said(self, verdict: Verdict) -> tuple[Said, ...]:
        """The questions of the verdict with the answers of those that were asked; a model that sees is asked about pictures."""
        answered = [entry for entry in verdict.entries if entry.divergence.answers]
        if self._probe.pictures or not answered:
            return ()
        words = self.measured.subject.tokenizer
        return tuple(
            Said(question, {e.label: words.decode(e.divergence.answers[i], skip_special_tokens=True).strip() for e in answered})
            for i, question in enumerate(QUESTIONS)
        )

    def seen(self, verdict: Verdict) -> tuple[Seen, ...]:
        """The pictures of the verdict with every contender's answers."""
        words = self.measured.subject.tokenizer
        return tuple(
            Seen.of(
                picture.image,
                picture.question,
                picture.answer,
                {
                    entry.label: words.decode(entry.divergence.answers[i], skip_special_tokens=True).strip()
                    for entry in verdict.entries
                    if entry.divergence.answers
                },
            )
            for i, picture in enumerate(self._probe.pictures)
        )

    def check(self, path: Path) -> Divergence:
        """The files at ``path`` on the predicting fold: the text that the prediction is about."""
        probe = Probe.of(self.measured.folds.predicting, self.measured.folds.kinds)
        return self._on(probe, [Candidate("predicting fold", str(path))], CHECK)[0]

    def report(
        self, plan: Plan, verdict: Verdict, check: Divergence, out: Path, stages: dict[str, Stage], command: tuple[str, ...]
    ) -> Report:
        subject, table = self.measured.subject, self.measured.sensitivity
        held = {
            "source": without_place(subject.settings.held_out),
            "sequences": subject.settings.held_out_sequences,
            "length": subject.settings.held_out_length,
        }
        return Report(
            out=out.name,
            plan=plan,
            verdict=verdict,
            check=check,
            n_parameters=table.n_parameters,
            reference_nbytes=table.sixteen_bit_nbytes(),
            coverage=tuple(subject.source.spec.coverage()),
            notes=self.measured.notes + verdict.notes + subject.container.plan_notes(subject.source.spec, plan),
            stages=stages,
            provenance={**table.provenance, "held_out": held},
            command=command,
            seen=self.seen(verdict),
            said=self.said(verdict),
        )

    def _contender(self, rival: Rival, asked: bool) -> Contender:
        path = self._source if rival.from_source else str(self._place(rival))
        trust = self.measured.subject.settings.trust_remote_code
        candidate = Candidate(
            rival.label,
            path,
            quantization=rival.quantization,
            trust_remote_code=trust,
            asked=asked,
            quick=rival.label != NOISE_FLOOR,
        )
        predicted = None if rival.plan.damage_nats == 0 else rival.plan.check_nats
        return Contender(candidate, rival.plan.nbytes, predicted, rival.gated, rival.plan)

    def _place(self, rival: Rival) -> Path:
        suffix = self.measured.subject.container.suffix
        return self.work_root / "rivals" / f"{content_hash(rival.plan.to_dict())}{suffix}"

    @property
    def _source(self) -> str:
        return str(self.measured.subject.source.checkpoint.directory)

    def _on(self, probe: Probe, candidates: list[Candidate], stage: str) -> list[Divergence]:
        subject = self.measured.subject
        wide, trust = reference_dtype(subject.device), subject.settings.trust_remote_code
        return compare(
            Candidate("16 bit", self._source, dtype=wide, trust_remote_code=trust),
            candidates,
            probe,
            device=str(subject.device),
            reporter=self.reporter,
            stage=stage,
            scratch=self.work_root,
            references=self.work_root / "references",
            fingerprint=subject.source.checkpoint.fingerprint,
        )


def write(measured: Measurement, outputs: Mapping[Path, Plan], reporter: Reporter) -> None:
    """Write every plan of ``outputs`` at its place and hold the files to the bytes that were planned."""
    subject = measured.subject
    total = len(outputs) * len(subject.source.spec.weights)
    with reporter.stage(WRITE, total) as advance:
        count = itertools.count(1)

        def packed_of(weight: Weight, format: str, rounding: Rounding) -> Packed:
            advance(next(count), total)
            return measured.packed_of(weight, format, rounding)

        written = subject.container.write(outputs, subject.source, packed_of)
    for path, plan in outputs.items():
        if written[path] != plan.nbytes:
            raise AssertionError(f"the plan counts {plan.nbytes} bytes, the files hold {written[path]}")
