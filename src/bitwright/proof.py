"""The proof of a written checkpoint: rivals, a fresh process that measures them all, and the report."""

from __future__ import annotations

from pathlib import Path

from bitwright.allocate.allocate import allocate, stock, stock_or_16bit, uniform
from bitwright.checkpoint.workdir import content_hash
from bitwright.checkpoint.writer import atomic_output
from bitwright.clock import Stage
from bitwright.evaluate.evaluate import Candidate, Text, compare
from bitwright.evaluate.figures import Divergence
from bitwright.evaluate.verify import NOISE_FLOOR, Contender, Verdict, judge
from bitwright.measure.prepare import held_out_domains
from bitwright.measurement import Measurement, Settings
from bitwright.places import without_place
from bitwright.plan import Plan
from bitwright.progress import Reporter
from bitwright.report.report import Report

RESULT = "bitwright"
SAME_BYTES = "calibrated, stock bytes"
SKIPS_ONLY = "skips, stock rounding"


class Proof:
    """Compares written files with the 16-bit model in fresh processes."""

    def __init__(self, measured: Measurement, work_root: Path, settings: Settings, reporter: Reporter) -> None:
        self.measured, self.work_root, self.settings, self.reporter = measured, work_root, settings, reporter
        wide = "float32" if measured.device.type == "cpu" else "bfloat16"
        reference = str(measured.skeleton.checkpoint.directory)
        self.reference = Candidate("16 bit", reference, dtype=wide, trust_remote_code=settings.trust_remote_code)

    def verdict(self, plan: Plan, path: Path, rivals: list[Contender]) -> Verdict:
        """Measure the files at ``path`` and all rivals on held-out text, and judge."""
        for rival in rivals:
            target = Path(rival.candidate.path)
            if rival.plan and not rival.candidate.quantize and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic_output(target) as place:
                    write(self.measured, rival.plan, place)
        settings = self.settings
        ids, domains = held_out_domains(
            self.measured.tokenizer, settings.held_out, settings.held_out_sequences, settings.held_out_length
        )
        result = Contender(Candidate(RESULT, str(path)), plan.nbytes, plan.check_nats, False, plan)
        candidates = [result.candidate, *(rival.candidate for rival in rivals)]
        return judge(result, rivals, self._on(Text(ids.tolist(), domains), candidates), self.measured.sensitivity.stock)

    def check(self, path: Path) -> Divergence:
        """The files at ``path`` on the predicting fold: the text that the prediction is about."""
        return self._on(Text(self.measured.folds.predicting.tolist()), [Candidate("predicting fold", str(path))])[0]

    def report(
        self, plan: Plan, verdict: Verdict, check: Divergence, out: Path, stages: dict[str, Stage], command: tuple[str, ...]
    ) -> Report:
        table, settings = self.measured.sensitivity, self.settings
        held_out = {
            "source": without_place(settings.held_out),
            "sequences": settings.held_out_sequences,
            "length": settings.held_out_length,
        }
        return Report(
            out=out.name,
            plan=plan,
            verdict=verdict,
            check=check,
            n_parameters=table.n_parameters,
            reference_nbytes=table.sixteen_bit_nbytes(),
            coverage=tuple(self.measured.skeleton.spec.coverage()),
            notes=tuple(self.measured.notes),
            stages=stages,
            provenance={**table.provenance, "held_out": held_out},
            command=command,
        )

    def _on(self, text: Text, candidates: list[Candidate]) -> list[Divergence]:
        where = str(self.measured.device)
        return compare(
            self.reference,
            candidates,
            text,
            device=where,
            quiet=self.reporter.quiet,
            scratch=self.work_root,
            references=self.work_root / "references",
            fingerprint=self.measured.skeleton.checkpoint.fingerprint,
        )


def rivals_of(measured: Measurement, plan: Plan, settings: Settings, work_root: Path) -> list[Contender]:
    """What the result is measured against: arithmetic noise, stock, the best uniform choice, and the ablations."""
    reference = str(measured.skeleton.checkpoint.directory)
    trust, by_library = settings.trust_remote_code, measured.container.rounds_on_load
    table = measured.sensitivity
    plain = stock(table)
    sixteen = table.sixteen_bit_nbytes()
    rivals = [
        _by_library(measured, plain, table.stock, True, trust)
        if by_library
        else _written_rival(measured, plain, table.stock, True, work_root),
        Contender(Candidate(NOISE_FLOOR, reference, trust_remote_code=trust), sixteen, None, False)
        if by_library
        else _written_rival(measured, uniform(table, "16bit", "none"), NOISE_FLOOR, False, work_root),
    ]
    formats = {row.format for w in table.weights for row in w.rows if row.rounding == "calibrated"}
    choices = [uniform(table, name, "calibrated") for name in sorted(formats)]
    choices = [choice for choice in choices if choice.nbytes <= plan.nbytes]
    if choices:
        best = min(choices, key=lambda choice: choice.damage_nats)
        rivals.append(_written_rival(measured, best, f"uniform {best.default_format}", True, work_root))
    if settings.compare and plan.nbytes > plain.nbytes >= table.least_nbytes():
        same = allocate(table, f"{plain.nbytes}B", frontier=False)
        rivals.append(_written_rival(measured, same, SAME_BYTES, False, work_root))
    if settings.compare and by_library and plan.nbytes >= plain.nbytes:
        skips = allocate(table, f"{plan.nbytes}B", allowed=stock_or_16bit, frontier=False)
        rivals.append(_by_library(measured, skips, SKIPS_ONLY, False, trust))
    return rivals


def _by_library(measured: Measurement, plan: Plan, label: str, uniform: bool, trust: bool) -> Contender:
    """``plan`` as bitsandbytes itself carries it out while loading the source: its own rounding, and modules to skip."""
    skipped = [c.weight.removesuffix(".weight") for c in plan.choices if c.format == "16bit"]
    kept = measured.skeleton.spec.kept
    outside = [k.name.removesuffix(".weight") for k in kept if k.role in ("head", "outside")]
    names = tuple(skipped + outside) if skipped else None
    reference = str(measured.skeleton.checkpoint.directory)
    candidate = Candidate(label, reference, quantize=True, skip_modules=names, trust_remote_code=trust)
    return Contender(candidate, plan.nbytes, plan.check_nats, uniform, plan)


def _written_rival(measured: Measurement, plan: Plan, label: str, uniform: bool, work_root: Path) -> Contender:
    path = work_root / "rivals" / f"{content_hash(plan.to_dict())}{measured.container.suffix}"
    return Contender(Candidate(label, str(path)), plan.nbytes, plan.check_nats, uniform, plan)


def write(measured: Measurement, plan: Plan, out: Path) -> None:
    """Write ``plan`` at ``out`` and hold the files to the bytes that were planned."""
    written = measured.container.write(out, measured.skeleton, plan, measured.codes_of)
    if written != plan.nbytes:
        raise AssertionError(f"the plan counts {plan.nbytes} bytes, the files hold {written}")
