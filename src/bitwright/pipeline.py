"""The job on one page: open, measure, allocate, write, prove."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bitwright.allocate.allocate import allocate, stock_or_16bit, uniform
from bitwright.checkpoint.headers import read_headers
from bitwright.checkpoint.open import local_directory, open_checkpoint
from bitwright.checkpoint.workdir import WorkDir, content_hash, write_json, write_text
from bitwright.checkpoint.writer import atomic_directory, require_new, require_space
from bitwright.errors import fail
from bitwright.evaluate.evaluate import Candidate, compare
from bitwright.evaluate.report import Report
from bitwright.evaluate.verify import NOISE_FLOOR, STOCK, Contender, Entry, judge
from bitwright.export.container import CodesOf, Container, container_of
from bitwright.formats.codes import Codes
from bitwright.formats.format import FORMATS, BlockFormat
from bitwright.measure.measure import Measured, Recipe, load_codes, measure_blocks
from bitwright.measure.memory import available_nbytes, fit
from bitwright.measure.prepare import DOCUMENTATION, SELF, calibration_folds, held_out_ids, tokenizer_of
from bitwright.measure.sensitivity import Row, Sensitivity, WeightRows
from bitwright.measure.stream import BlockStream
from bitwright.models.skeleton import Skeleton, build_skeleton
from bitwright.models.spec import Weight
from bitwright.plan import Plan
from bitwright.progress import Reporter
from bitwright.rounding.nearest import nearest
from bitwright.versions import versions

RESULT = "bitwright"
SAME_BYTES = "calibrated, stock bytes"
SKIPS_ONLY = "skips, stock rounding"


@dataclass(frozen=True)
class Settings:
    """Everything about a run but the source, the output and the budget."""

    container: str = "bitsandbytes"
    formats: tuple[str, ...] = ()  # measured instead of the container's menu
    calibration: str = ""  # a file, a datasets id, self or documentation; empty: self where the model fits, else documentation
    held_out: str = DOCUMENTATION
    sequences: int = 96
    length: int = 256
    held_out_sequences: int = 8
    held_out_length: int = 512
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"  # of the arithmetic: bfloat16 where the processor multiplies it, else float32
    max_memory: int | None = None  # bytes, of the whole process
    trust_remote_code: bool = False
    compare: bool = True  # also build and measure the ablations


@dataclass
class Measurement:
    """A measured model: the table, and what later stages need to write it."""

    skeleton: Skeleton
    tokenizer: Any
    container: Container
    work: WorkDir
    device: torch.device
    sensitivity: Sensitivity
    notes: list[str] = field(default_factory=list)

    def codes_of(self, weight: Weight, format: str, rounding: str) -> Codes:
        """The codes of one weight: read from the work directory, or rounded to nearest anew."""
        chosen = FORMATS[format]
        assert isinstance(chosen, BlockFormat)
        if rounding == "calibrated":
            return load_codes(self.work, weight, chosen)
        value = self.skeleton.read(weight.name)
        return nearest(value.t() if weight.transposed else value, chosen)


def quantize(
    source: str | Path,
    out: str | Path,
    budget: str = "+10%",
    *,
    max_damage: float | None = None,
    pins: tuple[str, ...] = (),
    workdir: str | Path | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Write ``source`` as a quantized checkpoint ``out`` within ``budget`` and prove it against the 16-bit model.

    Every stage's results stay in ``workdir`` (default: a hidden folder beside ``out``, removed at the end), so that a killed
    run goes on where it was. Raises BitwrightError, with nothing at ``out``, when any rule is broken.
    """
    settings, reporter, out = settings or Settings(), reporter or Reporter(), Path(out)
    clock = Clock()
    require_new(out)
    work_root = Path(workdir) if workdir else out.absolute().parent / f".{out.name}.work"
    measured = measure_model(source, work_root, settings, reporter)
    clock.lap("measure")
    plan = allocate(measured.sensitivity, budget, max_damage=max_damage, pins=pins)
    clock.lap("allocate")
    write_text(work_root / "plan.json", plan.to_json())
    rivals = _rivals(measured, plan, settings, work_root)
    require_space(out, plan.nbytes + sum(r.nbytes for r in rivals if r.plan and not r.candidate.quantize), "OUT")
    with atomic_directory(out.absolute()) as scratch:
        _write(measured, plan, scratch)
        clock.lap("write")
        report = _prove(measured, plan, rivals, scratch, work_root, settings, reporter)
        if report.verdict.shipped != RESULT:
            plan = next(r.plan for r in rivals if r.label == report.verdict.shipped) or plan
            shutil.rmtree(scratch)
            scratch.mkdir()
            _write(measured, plan, scratch)
        clock.lap("prove")
        report = replace(report, out=str(out), plan=plan, seconds=clock.laps)
        write_json(scratch / "report.json", {**report.to_dict(), "command": sys.argv})
        write_json(scratch / "bitwright.json", {"plan": plan.to_dict(), "provenance": report.provenance})
    if workdir is None:
        shutil.rmtree(work_root, ignore_errors=True)
    return report


def measure(
    source: str | Path,
    output: str | Path = "sensitivity.json",
    *,
    workdir: str | Path | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
) -> Sensitivity:
    """Measure ``source`` and write the table to ``output``; pieces stay in ``workdir`` (default: beside ``output``)."""
    output = Path(output)
    root = Path(workdir) if workdir else output.absolute().parent / f".{output.name}.work"
    sensitivity = measure_model(source, root, settings or Settings(), reporter or Reporter()).sensitivity
    write_text(output, sensitivity.to_json())
    if workdir is None:
        shutil.rmtree(root, ignore_errors=True)
    return sensitivity


def evaluate(
    reference: str,
    candidates: list[str],
    *,
    held_out: str = DOCUMENTATION,
    sequences: int = 8,
    length: int = 512,
    device: str = "auto",
    trust_remote_code: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Entry, ...]:
    """Compare ``candidates`` with ``reference`` on the same text in a fresh process, beside the reference's noise floor."""
    reporter, where = reporter or Reporter(), _device(device)
    directory = open_checkpoint(reference).directory
    tokenizer = tokenizer_of(directory, trust_remote_code)
    ids = held_out_ids(tokenizer, held_out, sequences, length)
    wide = "float32" if where.type == "cpu" else "bfloat16"
    models = [Candidate(NOISE_FLOOR, str(directory), trust_remote_code=trust_remote_code)]
    models += [Candidate(path, str(local_directory(path)), trust_remote_code=trust_remote_code) for path in candidates]
    divergences = compare(
        Candidate("16 bit", str(directory), dtype=wide, trust_remote_code=trust_remote_code), models, ids.tolist(),
        device=str(where), quiet=reporter.quiet,
    )  # fmt: skip
    sizes = [sum(ref.nbytes for ref in read_headers(Path(model.path)).values()) for model in models]
    return tuple(Entry(m.label, size, d, None) for m, size, d in zip(models, sizes, divergences, strict=True))


def measure_model(source: str | Path, work_root: Path, settings: Settings, reporter: Reporter) -> Measurement:
    """Open ``source`` and measure every weight in every format of the container."""
    container = container_of(settings.container)
    formats = _formats(container, settings.formats)
    checkpoint = open_checkpoint(source)
    skeleton = build_skeleton(checkpoint, settings.trust_remote_code)
    tokenizer = tokenizer_of(checkpoint.directory, settings.trust_remote_code)
    device, dtype = _device(settings.device), _dtype(settings)
    spec, notes = skeleton.spec, []
    calibration, why = _calibration(settings, skeleton)
    notes += [why] if why else []
    recipe = Recipe(formats, _block_format(container.stock_format), container.unavailable, seed=settings.seed)
    hidden_size = int(skeleton.model.config.get_text_config().hidden_size)
    recipe = fit(spec, recipe, settings.sequences, settings.length, dtype.itemsize, hidden_size, settings.max_memory)
    key = content_hash(
        checkpoint.fingerprint, calibration, _fingerprint_of_file(calibration), settings.sequences, settings.length,
        str(dtype), device.type, recipe.key(), versions(),
    )  # fmt: skip
    codes_nbytes = sum(container.nbytes(f, w.n_rows, w.n_cols) for f in formats for w in spec.weights)
    boundaries = (len(skeleton.blocks) + 2) * settings.sequences * settings.length * hidden_size * dtype.itemsize
    require_space(work_root, codes_nbytes + boundaries, "the work directory")
    work = WorkDir(work_root, key)
    text_key = content_hash(checkpoint.fingerprint, settings.sequences, settings.length, settings.seed, device.type, versions())
    folds = calibration_folds(
        skeleton, tokenizer, calibration, count=settings.sequences, length=settings.length, seed=settings.seed, device=device,
        work=WorkDir(work_root, text_key), reporter=reporter,
    )  # fmt: skip
    found = measure_blocks(BlockStream(skeleton, device, dtype), folds, recipe, work, reporter)
    provenance = {
        "versions": versions(), "fingerprint": checkpoint.fingerprint, "seed": settings.seed, "calibration": folds.source,
        "sequences": len(folds.all), "length": folds.n_tokens, "calibration_hash": folds.key, "dtype": str(dtype),
        "device": device.type,
    }  # fmt: skip
    sensitivity = _sensitivity(str(source), container, formats, skeleton, found, provenance)
    notes += [f"{m.name}: second moment needed damping {m.damping:g}" for m in found if m.damping > recipe.damping]
    write_text(work_root / "sensitivity.json", sensitivity.to_json())
    return Measurement(skeleton, tokenizer, container, work, device, sensitivity, notes)


def _sensitivity(
    source: str, container: Container, formats: tuple[BlockFormat, ...], skeleton: Skeleton, found: list[Measured],
    provenance: dict[str, Any],
) -> Sensitivity:  # fmt: skip
    by_name = {m.name: m for m in found}
    rows = []
    for weight in skeleton.spec.weights:
        shape = (weight.n_rows, weight.n_cols)
        reasons = {f.name: container.unavailable(f, *shape) for f in formats}
        barred = tuple((name, why) for name, why in reasons.items() if why)
        candidates = [
            Row(nbytes=container.nbytes(FORMATS[c.format], *shape), **asdict(c)) for c in by_name[weight.name].candidates
        ]
        sixteen = Row("16bit", "none", 2 * weight.n_rows * weight.n_cols, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        rows.append(
            WeightRows(
                weight.name, weight.block, weight.role, *shape, (*candidates, sixteen), by_name[weight.name].damping, barred
            )
        )
    kept = skeleton.spec.kept_nbytes
    return Sensitivity(source, container.name, container.stock_format, kept, tuple(rows), provenance)


def _rivals(measured: Measurement, plan: Plan, settings: Settings, work_root: Path) -> list[Contender]:
    """What the result is measured against: arithmetic noise, stock, the best uniform choice, and the ablations."""
    reference = str(measured.skeleton.checkpoint.directory)
    trust = settings.trust_remote_code
    table = measured.sensitivity
    stock = uniform(table, table.stock_format, "nearest")
    sixteen = table.kept_nbytes + sum(w.row("16bit", "none").nbytes for w in table.weights)
    rivals = [
        Contender(
            Candidate(STOCK, reference, quantize=True, trust_remote_code=trust), stock.nbytes, stock.check_nats, True, stock
        ),
        Contender(Candidate(NOISE_FLOOR, reference, trust_remote_code=trust), sixteen, None, False),
    ]
    formats = {row.format for w in table.weights for row in w.rows if row.rounding == "calibrated"}
    choices = [uniform(table, name, "calibrated") for name in sorted(formats)]
    choices = [choice for choice in choices if choice.nbytes <= plan.nbytes]
    if choices:
        best = min(choices, key=lambda choice: choice.damage_nats)
        rivals.append(_written_rival(measured, best, f"uniform {best.default_format}", True, work_root))
    if settings.compare and plan.nbytes > stock.nbytes:
        same = allocate(table, f"{stock.nbytes}B", frontier=False)
        rivals.append(_written_rival(measured, same, SAME_BYTES, False, work_root))
        skips = allocate(table, f"{plan.nbytes}B", allowed=stock_or_16bit, frontier=False)
        names = tuple(c.weight.removesuffix(".weight") for c in skips.choices if c.format == "16bit")
        outside = tuple(
            kept.name.removesuffix(".weight") for kept in measured.skeleton.spec.kept if kept.role in ("head", "outside")
        )
        candidate = Candidate(SKIPS_ONLY, reference, quantize=True, skip_modules=names + outside, trust_remote_code=trust)
        rivals.append(Contender(candidate, skips.nbytes, skips.check_nats, False, skips))
    return rivals


def _written_rival(measured: Measurement, plan: Plan, label: str, uniform: bool, work_root: Path) -> Contender:
    path = work_root / "rivals" / label.replace(" ", "-").replace(",", "")
    return Contender(Candidate(label, str(path)), plan.nbytes, plan.check_nats, uniform, plan)


def _prove(
    measured: Measurement, plan: Plan, rivals: list[Contender], scratch: Path, work_root: Path, settings: Settings,
    reporter: Reporter,
) -> Report:  # fmt: skip
    """Measure the written files in a fresh process and judge."""
    for rival in rivals:
        path = Path(rival.candidate.path)
        if rival.plan and not rival.candidate.quantize and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_directory(path) as folder:
                _write(measured, rival.plan, folder)
    ids = held_out_ids(measured.tokenizer, settings.held_out, settings.held_out_sequences, settings.held_out_length)
    reference = measured.skeleton.checkpoint.directory
    wide = "float32" if measured.device.type == "cpu" else "bfloat16"
    result = Contender(Candidate(RESULT, str(scratch)), plan.nbytes, plan.check_nats, False, plan)
    divergences = compare(
        Candidate("16 bit", str(reference), dtype=wide, trust_remote_code=settings.trust_remote_code),
        [result.candidate, *(rival.candidate for rival in rivals)],
        ids.tolist(),
        device=str(measured.device),
        quiet=reporter.quiet,
        scratch=work_root,
    )
    verdict = judge(result, rivals, divergences)
    table = measured.sensitivity
    held_out = {"source": settings.held_out, "sequences": len(ids), "length": int(ids.shape[1])}
    sixteen = table.kept_nbytes + sum(w.row("16bit", "none").nbytes for w in table.weights)
    return Report(
        "", plan, verdict, table.n_parameters, sixteen, tuple(measured.skeleton.spec.coverage()), tuple(measured.notes), {},
        {**table.provenance, "held_out": held_out},
    )  # fmt: skip


def _write(measured: Measurement, plan: Plan, directory: Path) -> None:
    codes_of: CodesOf = measured.codes_of
    written = measured.container.write(directory, measured.skeleton, plan, codes_of)
    if written != plan.nbytes:
        raise AssertionError(f"the plan counts {plan.nbytes} bytes, the files hold {written}")


def _formats(container: Container, names: tuple[str, ...]) -> tuple[BlockFormat, ...]:
    for name in names:
        if name not in container.formats or name == "16bit":
            raise fail(
                "formats/unknown", f"--formats {name}", saw=f"{container.name} does not load it",
                wanted=f"formats out of {', '.join(f for f in container.formats if f != '16bit')}", help="leave --formats out",
            )  # fmt: skip
    return tuple(_block_format(name) for name in names or container.menu)


def _block_format(name: str) -> BlockFormat:
    format = FORMATS[name]
    assert isinstance(format, BlockFormat)
    return format


def _calibration(settings: Settings, skeleton: Skeleton) -> tuple[str, str]:
    """The calibration source, and a note when it was chosen by size."""
    if settings.calibration:
        return settings.calibration, ""
    needed = int(1.3 * sum(ref.nbytes for ref in skeleton.checkpoint.refs.values()))
    room = min(available_nbytes(), settings.max_memory or available_nbytes())
    if needed <= room:
        return SELF, ""
    return DOCUMENTATION, (
        f"calibrated on documentation text: a model that writes its own needs {needed / 1e9:.1f} GB, {room / 1e9:.1f} are free"
    )


def _fingerprint_of_file(calibration: str) -> str:
    path = Path(calibration).expanduser()
    return content_hash(path.read_bytes().hex()) if calibration and path.is_file() else ""


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        return device
    except (RuntimeError, AssertionError) as error:
        raise fail(
            "device/unknown", f"--device {name}", saw=str(error).splitlines()[0], wanted="a device that torch can use here",
            help="--device auto",
        ) from error  # fmt: skip


def _dtype(settings: Settings) -> torch.dtype:
    if settings.dtype in ("float32", "bfloat16"):
        return torch.float32 if settings.dtype == "float32" else torch.bfloat16
    if _device(settings.device).type != "cpu" or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


class Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage], self._last = round(now - self._last, 2), now
