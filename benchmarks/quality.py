"""python -m benchmarks.quality [MODEL ...] — divergence of our files over that of stock NF4, and how true the predictions are.

One run per model: quantize at the given budget, measure everything in a fresh process on held-out text, then change
single weights of the 16-bit model and compare the true divergence of each with what was predicted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM

import bitwright
from benchmarks.models import REFERENCES, reference
from bitwright import Report, Sensitivity, Settings
from bitwright.containers.registry import container_of
from bitwright.containers.rivals import SAME_BYTES
from bitwright.data.held_out import held_out
from bitwright.data.tokenizer import tokenizer_of
from bitwright.evaluate.divergence import token_figures
from bitwright.evaluate.reference import condense
from bitwright.plan import SIXTEEN, Rounding
from bitwright.report.report import sentences
from bitwright.report.table import table

SINGLE_SEQUENCES, SINGLE_LENGTH = 4, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=REFERENCES)
    parser.add_argument("--held-out", default="documentation", help="text that nothing was tuned on; a file may name domains")
    parser.add_argument("--budget", default="+10%")
    parser.add_argument("--calibration", default="")
    parser.add_argument("--sequences", type=int, default=Settings.sequences)
    parser.add_argument("--held-out-sequences", type=int, default=Settings.held_out_sequences)
    parser.add_argument("--held-out-length", type=int, default=Settings.held_out_length)
    parser.add_argument("--weights", type=int, default=42, help="single weights whose true divergence is measured")
    parser.add_argument("--output", type=Path, help="append the figures as one JSON line per model")
    options = parser.parse_args()
    console = Console(width=150)
    for model in options.models:
        figures = run(model, options, console)
        console.print(figures)
        if options.output:
            with open(options.output, "a", encoding="utf-8") as file:
                file.write(json.dumps({"model": model, **figures}) + "\n")


def run(model: str, options: argparse.Namespace, console: Console) -> dict[str, float]:
    """The figures of one model."""
    source = reference(model)
    settings = Settings(
        held_out=options.held_out,
        calibration=options.calibration,
        sequences=options.sequences,
        held_out_sequences=options.held_out_sequences,
        held_out_length=options.held_out_length,
    )
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "work"
        report = bitwright.quantize(source, Path(scratch) / "out", options.budget, workdir=work, settings=settings)
        sensitivity = Sensitivity.load(work / "sensitivity.json")
    console.print(table(report.verdict.entries))
    for sentence in sentences(report):
        console.print(sentence)
    found = ratios(report) | by_domain(report)
    if options.weights:
        found["rank_correlation"] = single_weights(source, sensitivity, options)
    return found


def ratios(report: Report) -> dict[str, float]:
    stock = report.verdict.entry(report.verdict.stock)
    same = next((e for e in report.verdict.entries if e.label == SAME_BYTES), report.result)
    return {
        "kl_over_stock_same_bytes": same.divergence.kl / stock.divergence.kl,
        "kl_over_stock": report.kl_ratio_to_stock,
        "bytes_over_stock": report.result.nbytes / stock.nbytes,
        "predicted_over_measured": report.predicted_over_measured,
        "seconds": report.seconds,
    }


def by_domain(report: Report) -> dict[str, float]:
    """KL over stock in every domain of the held-out text, and the largest of these ratios over the smallest."""
    domains, found = report.result.divergence.domains, report.domain_ratios(report.result.divergence)
    if not found:
        return {}
    low, high = report.plan.elsewhere
    expected = {"expected_from": low, "expected_to": high, "domains_outside": sum(not low <= d.kl <= high for d in domains)}
    return (
        expected
        | {f"kl_over_stock_{name}": ratio for name, ratio in found.items()}
        | {"widest_over_narrowest": max(found.values()) / min(found.values())}
    )


@torch.no_grad()
def single_weights(source: Path, sensitivity: Sensitivity, options: argparse.Namespace) -> float:
    """Spearman correlation of predicted and true divergence when one weight at a time is stored as stock NF4."""
    tokenizer = tokenizer_of(source)
    ids = [sample.ids for sample in held_out(tokenizer, options.held_out, SINGLE_SEQUENCES, SINGLE_LENGTH).samples]
    container = container_of(sensitivity.container)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    references = [condense(model(row[None]).logits[0], row[1:]) for row in ids]
    stored = [weight for weight in sensitivity.weights if weight.stock != SIXTEEN]
    chosen = [stored[int(i * len(stored) / options.weights)] for i in range(options.weights)]
    predicted, true = [], []
    for weight in chosen:
        parameter = model.get_parameter(weight.name)
        original = parameter.detach().clone()
        transposed = tuple(original.shape) != (weight.n_rows, weight.n_cols)
        format = container.format(weight.stock)
        decoded = container.rounder(format).nearest(original.t() if transposed else original, format).decode()
        parameter.copy_(decoded.t() if transposed else decoded)
        found = [
            token_figures(p, model(row[None]).logits[0], row[1:]).kl.mean() for p, row in zip(references, ids, strict=True)
        ]
        true.append(float(torch.stack(found).mean()))
        row = weight.row(weight.stock, Rounding.NEAREST)
        predicted.append(row.damage_nats)
        parameter.copy_(original)
    return float(spearmanr(predicted, true).statistic)


if __name__ == "__main__":
    main()
