"""The job on one page: open, describe, measure, allocate, write, prove."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

from bitwright.allocate.allocate import allocate
from bitwright.allocate.edited import edited, keep_plan, require_unedited
from bitwright.checkpoint.headers import read_headers
from bitwright.checkpoint.open import local_directory, open_checkpoint
from bitwright.checkpoint.output import (
    PROOF,
    Output,
    beside,
    owned,
    remove,
    require_apart,
    require_space,
    require_text_place,
    write_json,
    write_text,
)
from bitwright.containers.registry import container_of, require_suffix
from bitwright.data.documentation import DOCUMENTATION
from bitwright.data.held_out import held_out as held_out_samples
from bitwright.data.held_out import require_unseen
from bitwright.data.tokenizer import tokenizer_of
from bitwright.data.viewer import viewer_of
from bitwright.errors import Finding, fail
from bitwright.evaluate.evaluate import Candidate, PartlyComparedError, compare
from bitwright.evaluate.figures import TaskScore
from bitwright.evaluate.process import WorkerError
from bitwright.evaluate.tasks import score
from bitwright.evaluate.verdict import Entry, PartlyEvaluatedError
from bitwright.forecast.forecast import Forecast, forecast_of, measuring_seconds
from bitwright.forecast.speed import Speed
from bitwright.host.clock import Clock
from bitwright.host.device import device_of, reference_dtype
from bitwright.host.places import cache_dir, without_place
from bitwright.host.progress import Reporter
from bitwright.measure.measure import Measurement
from bitwright.measure.measure import measure as measure_subject
from bitwright.measure.subject import Subject
from bitwright.plan import NOISE_FLOOR, Plan
from bitwright.prove.proof import RESULT, Proof, write
from bitwright.report.card import card, picture_files
from bitwright.report.page import KNOWN_BY as PAGE
from bitwright.report.page import page
from bitwright.report.report import Report
from bitwright.runtimes.llama_cpp import mmproj_of
from bitwright.sensitivity import Sensitivity
from bitwright.settings import Settings


def quantize(
    source: str | Path,
    out: str | Path,
    budget: str = "+10%",
    *,
    max_damage: float | None = None,
    pins: tuple[str, ...] = (),
    plan: str | Path | None = None,
    workdir: str | Path | None = None,
    overwrite: bool = False,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
    command: tuple[str, ...] = (),
) -> Report:
    """Write ``source`` as a quantized checkpoint ``out`` within ``budget`` and prove it against the 16-bit model.

    Args:
        source: A model directory, a .gguf file, a hub id, ``demo`` or ``demo-vision``.
        out: The directory or .gguf file to create.
        budget: ``+10%`` over the container's stock quantization, ``0.5GB``, ``500MB``, ``4.6bpw``, ``like Q4_K_M``.
        max_damage: Instead of a budget: the smallest file predicted below this KL divergence, in nats per token.
        pins: Formats that are forced, such as ``"*.down_proj=16bit"``.
        plan: A plan.json whose formats are written instead of a choice of ours.
        workdir: Every stage's results stay here, so that a killed run goes on where it was. Default: a hidden folder beside
            ``out``, removed at the end.
        overwrite: Replace a checkpoint at ``out`` that Bitwright wrote.
        settings: Everything else; its ``container`` says for whom.
        reporter: Shows progress. Default: on the terminal.
        command: The words that asked for it, for the report.

    Returns:
        What is known about the written checkpoint, the same as report.json beside it. A notebook shows its table.

    Raises:
        BitwrightError: A rule is broken; nothing is at ``out`` then, or what was there before.

    Example:
        >>> report = bitwright.quantize("demo", "demo-out", "+10%")  # doctest: +SKIP
        >>> report.kl_ratio_to_stock  # doctest: +SKIP
        0.114
    """
    settings, reporter, out = settings or Settings(), reporter or Reporter(), Path(out)
    clock = Clock()
    container = container_of(settings.container)
    require_suffix(out, container)
    work_root = Path(workdir) if workdir else out.absolute().parent / f".{out.name}.work"
    require_apart(out, (Path(source),), work_root)
    with Output(out, bool(container.suffix), overwrite).claimed() as claim, owned(work_root, out, ours=not workdir):
        asked = _Asked.of(budget, max_damage, pins, plan, settings.fused_groups)
        subject = Subject.open(source, settings, asked.formats, to_write=True)
        require_apart(out, (subject.source.checkpoint.directory,), work_root)
        _preflight(subject)
        if not asked.given:
            require_unedited(work_root / "plan.json")
        blank = asked.choice(subject.blank_table())  # a budget, a pin or a plan is refused before anything slow
        require_space(out, blank.nbytes, "OUT")
        for note in subject.notes:
            reporter.say(f"note: {note}")
        reporter.kept = work_root
        if not reporter.quiet:
            reporter.plan(forecast_of(subject, Speed.of(subject), blank).seconds, seconds=True)
        measured = measure_subject(subject, work_root, reporter)
        clock.lap("measure")
        chosen = asked.choice(measured.sensitivity, frontier=True)
        clock.lap("allocate")
        if not asked.given:
            keep_plan(work_root / "plan.json", chosen)
        proof = Proof.of(measured, chosen, work_root, reporter)
        require_space(out, chosen.nbytes + sum(rival.nbytes for rival in proof.missing().values()), "OUT")
        with claim.made() as place:
            proof.write(chosen, place)
            clock.lap("write")
            verdict = proof.verdict(chosen, place, may_replace=asked.given is None)
            if verdict.shipped != RESULT:
                chosen = next(rival.plan for rival in proof.rivals if rival.label == verdict.shipped)
                remove(place)
                write(measured, {place: chosen}, reporter)
            check = proof.check(place)
            clock.lap("prove")
            report = proof.report(chosen, verdict, check, out, clock.stages, tuple(map(without_place, command)))
            report = _with_pages(report, measured, str(source), place)
            write_json(beside(place, "report.json"), report.to_dict())
            write_json(beside(place, PROOF), {"plan": chosen.to_dict(), "provenance": report.provenance})
        write_json(work_root / "report.json", report.to_dict())
        if not workdir:
            shutil.rmtree(work_root, ignore_errors=True)
        return report


def forecast(
    source: str | Path,
    out: str | Path,
    budget: str = "+10%",
    *,
    max_damage: float | None = None,
    pins: tuple[str, ...] = (),
    plan: str | Path | None = None,
    workdir: str | Path | None = None,
    settings: Settings | None = None,
) -> Forecast:
    """What ``quantize`` with these arguments would take on this machine: time by stage, memory, disk, the size of the result.

    Two small trials tell how fast the machine is. Nothing is written, and ``out`` is not looked at but for its name.

    Args:
        source, out, budget, max_damage, pins, plan, settings: As of ``quantize``.
        workdir: Where it holds a finished measurement, the predicted damage is told too.

    Returns:
        Seconds by stage, bytes of memory and disk, bytes of the result.

    Raises:
        BitwrightError: For what ``quantize`` would refuse before it measures.

    Example:
        >>> bitwright.forecast("demo", "demo-out").nbytes  # doctest: +SKIP
        128079044
    """
    settings = settings or Settings()
    require_suffix(Path(out), container_of(settings.container))
    asked = _Asked.of(budget, max_damage, pins, plan, settings.fused_groups)
    subject = Subject.open(source, settings, asked.formats, to_write=True)
    _preflight(subject)
    table = _finished_table(Path(workdir), subject) if workdir else None
    chosen = asked.choice(table or subject.blank_table())
    found = forecast_of(subject, Speed.of(subject), chosen)
    if table:
        return replace(found, damage_nats=chosen.check_nats)
    if asked.given:
        return found
    most = chosen.budget_nbytes or subject.blank_table().sixteen_bit_nbytes()  # without damages the choice is the smallest
    return replace(found, nbytes=most)


def _finished_table(work_root: Path, subject: Subject) -> Sensitivity | None:
    """The measurement that lies in ``work_root``, where it is one of ``subject`` in its container."""
    path = work_root / "sensitivity.json"
    table = Sensitivity.load(path) if path.exists() else None
    if table is None or table.container != subject.container.name:
        return None
    return table if table.provenance.get("fingerprint") == subject.source.checkpoint.fingerprint else None


@dataclass(frozen=True)
class _Asked:
    """What a result shall be: the best plan within a budget or a damage, or one that a person gave."""

    budget: str
    max_damage: float | None
    pins: tuple[str, ...]
    path: Path
    given: Plan | None  # read from ``path``
    fused_groups: bool

    @classmethod
    def of(
        cls, budget: str, max_damage: float | None, pins: tuple[str, ...], plan: str | Path | None, fused_groups: bool
    ) -> _Asked:
        return cls(budget, max_damage, pins, Path(plan or ""), Plan.load(Path(plan)) if plan else None, fused_groups)

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats that have to be measured beside the container's own."""
        return self.given.formats if self.given else ()

    def choice(self, table: Sensitivity, frontier: bool = False) -> Plan:
        """The plan by the damages of ``table``."""
        if self.given:
            return edited(table, self.given, self.path, self.fused_groups)
        return allocate(
            table, self.budget, max_damage=self.max_damage, pins=self.pins, frontier=frontier, fused_groups=self.fused_groups
        )


def _preflight(subject: Subject) -> None:
    """Raise BitwrightError where there is no text for the verdict, which would come out at the end."""
    settings = subject.settings
    require_unseen(settings.held_out, settings.calibration, subject.tokenizer)
    held_out_samples(
        subject.tokenizer, settings.held_out, settings.held_out_sequences, settings.held_out_length, subject.viewer
    )


def _with_pages(report: Report, measured: Measurement, source: str, place: Path) -> Report:
    """Write the page and the card beside the weights; a finished run is not lost to a picture, which becomes a note."""
    directory, notes = measured.subject.source.checkpoint.directory, list(report.notes)
    makers = {"report.html": partial(page, report, measured.sensitivity), "README.md": partial(card, report, source, directory)}
    for name, make in makers.items():
        try:
            write_text(beside(place, name), make())
        except Exception as error:  # noqa: BLE001 - whatever the drawing or the metadata library raises
            notes.append(f"{name} could not be made: {type(error).__name__}: {error}".splitlines()[0])
    for i, png in enumerate(picture_files(report).values(), 1):
        beside(place, f"picture-{i}.png").write_bytes(png)
    return replace(report, notes=tuple(notes))


def report(workdir: str | Path, output: str | Path | None = None) -> Path:
    """Draw ``report.html`` again from the files that a run left in ``workdir``.

    Args:
        workdir: The ``workdir`` of a run of ``quantize`` that came to its end.
        output: The page to write. Default: report.html in ``workdir``.

    Returns:
        Where the page is.

    Raises:
        BitwrightError: The run has not come to its end there.

    Example:
        >>> bitwright.report("work", "page.html")  # doctest: +SKIP
        PosixPath('page.html')
    """
    root = Path(workdir)
    output = Path(output) if output else root / "report.html"
    if (root / PROOF).exists() and not (root / "sensitivity.json").exists():
        raise fail(
            "report/result",
            root,
            saw="a finished checkpoint, which has its page already",
            wanted="the work directory of a run, which holds sensitivity.json and report.json",
            help=f"open {beside(root, 'report.html')}; to draw it anew: bitwright quantize SOURCE OUT --workdir DIR",
        )
    found, sensitivity = Report.load(root / "report.json"), Sensitivity.load(root / "sensitivity.json")
    require_text_place(output, PAGE.encode())
    if found.plan.provenance != sensitivity.provenance:
        raise fail(
            "report/other-run",
            root,
            saw="report.json is of another measurement than sensitivity.json",
            wanted="both from one run",
            help="let the run come to its end: bitwright quantize SOURCE OUT --workdir DIR",
        )
    write_text(output, page(found, sensitivity))
    return output


def measure(
    source: str | Path,
    output: str | Path = "sensitivity.json",
    *,
    imatrix_output: str | Path | None = None,
    workdir: str | Path | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
) -> Sensitivity:
    """Measure what every weight of ``source`` loses in every format, and write the table.

    Args:
        source: A model directory, a .gguf file, a hub id, ``demo`` or ``demo-vision``.
        output: The table to write, JSON.
        imatrix_output: Also write the mean squared inputs here, as llama.cpp's importance matrix.
        workdir: Where finished pieces stay. Default: a hidden folder beside ``output``, removed at the end.
        settings: Container, formats, calibration text and the like.
        reporter: Shows progress. Default: on the terminal.

    Returns:
        The table: for each weight and format its bytes and its damage in nats per token.

    Raises:
        BitwrightError: A source or settings that cannot be carried out.

    Example:
        >>> table = bitwright.measure("demo", "sensitivity.json")  # doctest: +SKIP
        >>> table.weights[0].rows[0].damage_nats  # doctest: +SKIP
        0.00041
    """
    output = Path(output)
    root = Path(workdir) if workdir else output.absolute().parent / f".{output.name}.work"
    reporter = reporter or Reporter()
    require_text_place(output, b'"bitwright.sensitivity/')
    if imatrix_output:
        require_text_place(Path(imatrix_output), b"imatrix")
    with owned(root, output, ours=not workdir):
        subject = Subject.open(source, settings or Settings())
        for note in subject.notes:
            reporter.say(f"note: {note}")
        reporter.kept = root
        if not reporter.quiet:
            reporter.plan(measuring_seconds(subject, Speed.of(subject)), seconds=True)
        measured = measure_subject(subject, root, reporter)
        write_text(output, measured.sensitivity.to_json())
        if imatrix_output:
            measured.write_imatrix(Path(imatrix_output))
        if not workdir:
            shutil.rmtree(root, ignore_errors=True)
    return measured.sensitivity


def evaluate(
    reference: str,
    candidates: list[str],
    *,
    held_out: str = DOCUMENTATION,
    sequences: int = 8,
    length: int = 512,
    greedy: int = 32,
    tasks: tuple[str, ...] = (),
    task_limit: int | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Entry, ...]:
    """Compare ``candidates`` with ``reference`` on the same text in a fresh process, beside the reference's noise floor.

    What is kept of the reference's distributions stays in the cache directory, so that the next comparison need not load it.

    Args:
        reference: The 16-bit model.
        candidates: Checkpoints, quantized or not, in whatever container.
        held_out: ``documentation``, a file, a folder of images, a datasets id.
        sequences, length: How much of it: sequences of so many tokens.
        greedy: Also continue the start of every sequence by so many tokens, always the likeliest.
        tasks: Names of lm-evaluation-harness, and .jsonl files of questions.
        task_limit: Questions of each task.
        device: ``auto``, ``cpu``, ``cuda`` ...
        trust_remote_code: Run code that the models bring along.
        reporter: Shows progress. Default: on the terminal.

    Returns:
        A line for the noise floor and for each candidate.

    Raises:
        PartlyEvaluatedError: Some of the models cannot be run; it carries the lines of the others.
        BitwrightError: None can.

    Example:
        >>> for line in bitwright.evaluate("demo", ["demo-out"]):  # doctest: +SKIP
        ...     print(line.label, line.divergence.kl)
        16-bit arithmetic 0.0012
        demo-out 0.0313
    """
    reporter, where = reporter or Reporter(), device_of(device)
    checkpoint = open_checkpoint(reference)
    directory = checkpoint.directory
    tokenizer = tokenizer_of(directory, trust_remote_code)
    viewer, _ = viewer_of(directory, checkpoint.config, tokenizer)
    probe = held_out_samples(tokenizer, held_out, sequences, length, viewer)
    models = [Candidate(NOISE_FLOOR, str(directory), trust_remote_code=trust_remote_code, quick=False)]
    models += [Candidate(path, str(_candidate(path)), trust_remote_code=trust_remote_code) for path in candidates]
    sizes = [_stored_nbytes(Path(model.path)) for model in models]
    if tasks:
        score([], list(tasks), viewer=viewer)  # what cannot be run is said before hours of comparing
    failures: tuple[Finding, ...] = ()
    try:
        divergences = compare(
            Candidate("16 bit", str(directory), dtype=reference_dtype(where), trust_remote_code=trust_remote_code),
            models,
            probe,
            device=str(where),
            reporter=reporter,
            greedy=greedy,
            references=cache_dir() / "references",
            fingerprint=checkpoint.fingerprint,
        )
    except PartlyComparedError as error:
        failures, kept = tuple(error.failures.values()), sorted(error.divergences)
        models, sizes = [models[i] for i in kept], [sizes[i] for i in kept]
        divergences = [error.divergences[i] for i in kept]
    n_parameters = sum(prod(ref.shape) for ref in checkpoint.refs.values())
    scores: list[tuple[TaskScore, ...]] = [()] * len(models)
    if tasks:
        try:
            scores = score(models, list(tasks), limit=task_limit, device=str(where), reporter=reporter, viewer=viewer)
        except WorkerError as error:  # what was compared stays
            failures += (error.finding,)
    entries = tuple(
        Entry(m.label, size, d, None, 8 * size / n_parameters, found)
        for m, size, d, found in zip(models, sizes, divergences, scores, strict=True)
    )
    if failures:
        raise PartlyEvaluatedError(failures, entries)
    return entries


def _candidate(path: str) -> Path:
    """A file is run as it is; anything else becomes a directory."""
    return Path(path) if Path(path).is_file() else local_directory(path)


def _stored_nbytes(path: Path) -> int:
    """Of all tensors; of a .gguf file its size, with that of the tower beside it."""
    if not path.is_file():
        return sum(ref.nbytes for ref in read_headers(path).values())
    tower = mmproj_of(path)
    return path.stat().st_size + (tower.stat().st_size if tower.exists() else 0)
