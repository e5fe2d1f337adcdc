"""The demo model that sees: what was gained for what on pictures, and how far to believe it."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from scipy.stats import spearmanr
from transformers import AutoModelForImageTextToText

import bitwright
from benchmarks.small_vlm import question_files
from bitwright import Report, Sensitivity, Settings
from bitwright.allocate.allocate import stock, stock_but
from bitwright.checkpoint.open import local_directory
from bitwright.containers.registry import container_of
from bitwright.containers.rivals import VISION_MLPS, VISION_WIDE
from bitwright.data.calibration import PICTURES, WORDS
from bitwright.data.held_out import BLANK, WRONG, held_out
from bitwright.data.samples import Sample
from bitwright.data.tokenizer import tokenizer_of
from bitwright.data.viewer import Viewer
from bitwright.evaluate.divergence import token_figures
from bitwright.evaluate.evaluate import Candidate, compare
from bitwright.evaluate.reference import condense
from bitwright.evaluate.tasks import score
from bitwright.measure.subject import Subject
from bitwright.plan import NOISE_FLOOR, SIXTEEN, Rounding
from bitwright.report.report import sentences
from bitwright.report.table import table
from bitwright.sensitivity import WeightRows

BUDGET = "+10%"
HELD_OUT_SEQUENCES = 16  # whose tokens eight times as many pictures take
VISION = ("vision", "projector")
STOCK = "nf4-b64"


def figures(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the table of docs/vision.md shows."""
    with tempfile.TemporaryDirectory() if options.workdir is None else nullcontext(options.workdir) as name:
        folder = Path(name)
        source = local_directory(options.model)
        settings = Settings(sequences=options.sequences, held_out_sequences=HELD_OUT_SEQUENCES)
        report = _quantized(source, folder / "ours", BUDGET, folder, settings)
        table_of = Sensitivity.load(folder / "work" / "sensitivity.json")
        found: dict[str, Any] = {"kl_over_stock": _by_domain(report), "bytes_over_stock": _bytes_over_stock(report)}
        found["predicted_over_measured"] = report.predicted_over_measured
        for label in (VISION_WIDE, VISION_MLPS):
            found[f"over {label}, at its bytes"] = _at_the_bytes_of(label, report, source, folder, settings)
        found["calibrated on text alone"] = _on_text_alone(report, source, folder, settings)
        found["vision alone"] = _vision_alone(source, settings)
        found["single weights"] = _single_weights(source, table_of, options.weights, options.pictures, folder)
        found["tasks"] = _tasks(source, folder, settings, options.questions)
        return found


def single(options: argparse.Namespace) -> dict[str, Any]:
    """What the measurement says of single weights, against the truth; only stock's format is measured."""
    with tempfile.TemporaryDirectory() if options.workdir is None else nullcontext(options.workdir) as name:
        folder, source = Path(name), local_directory(options.model)
        settings = Settings(sequences=options.sequences, formats=(STOCK,))
        table_of = bitwright.measure(source, folder / "sensitivity.json", workdir=folder / "measured", settings=settings)
        return _single_weights(source, table_of, options.weights, options.pictures, folder)


def _quantized(source: Path, out: Path, budget: str, folder: Path, settings: Settings) -> Report:
    report = bitwright.quantize(source, out, budget, workdir=folder / "work", settings=settings, overwrite=True)
    console = Console(width=150)
    console.print(table(report.verdict.entries, report.verdict.stock, width=150))
    for sentence in sentences(report):
        console.print(sentence)
    return report


def _by_domain(report: Report) -> dict[str, float]:
    theirs = report.verdict.entry(report.verdict.stock).divergence
    ours = report.result.divergence
    parts = {d.label: d.kl / s.kl for d, s in zip(ours.domains, theirs.domains, strict=True)}
    return {"all": ours.kl / theirs.kl, **parts}


def _bytes_over_stock(report: Report) -> float:
    return report.result.nbytes / report.verdict.entry(report.verdict.stock).nbytes


def _at_the_bytes_of(label: str, report: Report, source: Path, folder: Path, settings: Settings) -> dict[str, float]:
    """Our divergence over that of a hand-made list, when we may spend what the list spends."""
    rival, alone = report.verdict.entry(label), replace(settings, compare=False)
    ours = _quantized(source, folder / label.split(",")[0].replace(" ", "-"), f"{rival.nbytes}B", folder, alone)
    theirs = {domain.label: domain.kl for domain in rival.divergence.domains}
    own = {domain.label: domain.kl for domain in ours.result.divergence.domains}
    return {
        "bytes": ours.result.nbytes / rival.nbytes,
        "all": ours.result.divergence.kl / rival.divergence.kl,
        PICTURES: own[PICTURES] / theirs[PICTURES],
        "its KL on pictures": theirs[PICTURES],
    }


def _on_text_alone(report: Report, source: Path, folder: Path, settings: Settings) -> dict[str, float]:
    """What calibration without pictures, as other quantizers do it, costs at the same bytes: the tower stays in 16 bit."""
    alone = replace(settings, calibration="documentation", compare=False)
    other = _quantized(source, folder / "of-text", f"{report.result.nbytes}B", folder / "text", alone)
    theirs = {domain.label: domain.kl for domain in other.result.divergence.domains}
    own = {domain.label: domain.kl for domain in report.result.divergence.domains}
    return {
        "bytes": other.result.nbytes / report.result.nbytes,
        "all": other.result.divergence.kl / report.result.divergence.kl,
        **{label: theirs[label] / own[label] for label in theirs},
    }


def _vision_alone(source: Path, settings: Settings) -> dict[str, float]:
    """What stock rounding of everything but the text does to answers, with the picture and with a blank one in its place."""
    subject = Subject.open(source, settings)
    spec = subject.source.spec
    plan = stock_but(subject.blank_table(), "vision", lambda weight: weight.group not in VISION)
    candidate = Candidate("vision", str(source), quantization=subject.container.on_load(spec, plan))
    probe = held_out(
        subject.tokenizer, settings.held_out, settings.held_out_sequences, settings.held_out_length, subject.viewer
    )
    (line,) = compare(Candidate("16 bit", str(source), dtype="float32"), [candidate], probe)
    kl = {domain.label: domain.kl for domain in line.domains}
    return {"with the picture": kl[PICTURES], "blank": kl[BLANK], "blank over picture": kl[BLANK] / kl[PICTURES]}


@torch.no_grad()
def _single_weights(source: Path, sensitivity: Sensitivity, count: int, pictures: int, folder: Path) -> dict[str, Any]:
    """Predicted and true divergence when one weight at a time is stored as stock stores it.

    On pictures and texts in the shares that they have among the tokens of calibration, against what the allocator reads, and
    on answers about pictures alone against what the calibration's pictures in the fold that no choice saw say. Every pair is
    written to ``folder``.
    """
    tokenizer = tokenizer_of(source)
    probe = held_out(tokenizer, "documentation", -(-pictures // 8), 128, Viewer.of(source, tokenizer))
    samples = [(s, domain) for s, domain in zip(probe.samples, probe.domains, strict=True) if domain not in (WRONG, BLANK)]
    at_kind = sensitivity.provenance["kinds"].index(WORDS[PICTURES])
    container = container_of(sensitivity.container)
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32).eval()

    def logits(sample: Sample) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=sample.ids[None], **sample.media).logits[0][sample.positions]
        return found

    references = [condense(logits(sample), sample.following) for sample, _ in samples]
    stored = [weight for weight in sensitivity.weights if weight.stock != SIXTEEN]
    seeing = [weight for weight in stored if weight.group in VISION]
    text = [weight for weight in stored if weight.group not in VISION]
    chosen = seeing + [text[i * len(text) // (count - len(seeing))] for i in range(count - len(seeing))]
    share = _share(seeing, at_kind)
    pairs: dict[str, list[tuple[float, float]]] = {"everything": [], PICTURES: []}
    for weight in chosen:
        parameter, format = model.get_parameter(weight.name), container.format(weight.stock)
        original = parameter.detach().clone()
        parameter.copy_(container.rounder(format).nearest(original, format).decode())
        kl: dict[str, list[torch.Tensor]] = {}
        for reference, (sample, domain) in zip(references, samples, strict=True):
            kl.setdefault(domain, []).append(token_figures(reference, logits(sample), sample.following).kl)
        parameter.copy_(original)
        true = {domain: float(torch.cat(lines).mean()) for domain, lines in kl.items()}
        row = weight.row(weight.stock, Rounding.NEAREST)
        text_nats = statistics.fmean(nats for domain, nats in true.items() if domain != PICTURES)
        pairs["everything"].append((row.damage_nats, share * true[PICTURES] + (1 - share) * text_nats))
        pairs[PICTURES].append((row.check_by_kind[at_kind], true[PICTURES]))
    names = [weight.name for weight in chosen]
    (folder / "single.json").write_text(json.dumps({"names": names, "share of pictures": share, **pairs}))
    n = len(seeing)
    return {"weights": len(chosen), "of vision and projector": n} | {of: _agreement(found, n) for of, found in pairs.items()}


def _share(seeing: list[WeightRows], at_kind: int) -> float:
    """The share of the calibration's tokens that answer questions about pictures, where alone tower and projector lose."""
    rows = [weight.row(weight.stock, Rounding.NEAREST) for weight in seeing]
    return statistics.median(row.check_nats / row.check_by_kind[at_kind] for row in rows)


def _agreement(pairs: list[tuple[float, float]], n_seeing: int) -> dict[str, float]:
    """How well predicted and true figures agree; the first ``n_seeing`` are of tower and projector."""
    predicted, true = zip(*pairs, strict=True)
    return {
        "rank correlation": float(spearmanr(predicted, true).statistic),
        "of vision's": float(spearmanr(predicted[:n_seeing], true[:n_seeing]).statistic),
        "of text's": float(spearmanr(predicted[n_seeing:], true[n_seeing:]).statistic),
        "sum of predicted over sum of true": sum(predicted) / sum(true),
        "median of predicted over true": statistics.median(p / t for p, t in pairs),
    }


def _tasks(source: Path, folder: Path, settings: Settings, count: int) -> dict[str, Any]:
    """Right answers of 16 bit, stock and ours, and the mean over the tasks."""
    subject = Subject.open(source, settings)
    plan = stock(subject.blank_table())
    candidates = [
        Candidate(NOISE_FLOOR, str(source)),
        Candidate(plan.budget, str(source), quantization=subject.container.on_load(subject.source.spec, plan)),
        Candidate("ours", str(folder / "ours")),
    ]
    files = question_files(folder / "questions", count)
    rows = score(candidates, [str(file) for file in files], viewer=subject.viewer)
    found: dict[str, Any] = {}
    for candidate, scores in zip(candidates, rows, strict=True):
        found[candidate.label] = {s.task: round(s.value, 4) for s in scores}
        found[candidate.label]["mean"] = statistics.fmean(s.value for s in scores)
        found[candidate.label]["points lost"] = -100 * statistics.fmean(s.difference for s in scores)
    return found
