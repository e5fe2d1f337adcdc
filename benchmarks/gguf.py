"""python -m benchmarks.gguf [MODEL ...] — our GGUF files against those of llama.cpp's own encoders, at the same file bytes.

llama.cpp's files follow its recipes (Q4_K_M ...) tensor by tensor; each is encoded by ``ggml_quantize_chunk`` of the wheel
``xllamacpp`` with an importance matrix from the calibration text that ours is measured with. Ours get as many bytes as theirs
took. All files run in llama.cpp; divergence is from the 16-bit model in 32-bit arithmetic, on text that neither saw.

The references come from GGUF files and lie on those formats' grids; benchmarks.models.off_grid moves them off, exactly.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.llama_cpp_files import LLAMA_CPP, importance_matrix, llama_cpp_codes, plan_of
from benchmarks.models import off_grid, reference
from bitwright import Settings
from bitwright.allocate.allocate import allocate
from bitwright.containers.base import PackedOf
from bitwright.containers.gguf.container import GGUF, recipe_of
from bitwright.data.held_out import held_out
from bitwright.data.probe import Probe
from bitwright.evaluate.evaluate import Candidate, compare
from bitwright.evaluate.verdict import Entry
from bitwright.formats.base import Packed
from bitwright.host.progress import Reporter
from bitwright.measure.measure import Measurement, measure
from bitwright.measure.subject import Subject
from bitwright.models.spec import Kind, Weight
from bitwright.plan import Plan, Rounding
from bitwright.report.table import table
from bitwright.runtimes.llama_cpp import LlamaCpp

WITH_UNIFORM = ("q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q4_0", "iq4_nl", "q5_0", "q8_0")
UNIFORM = "q4_0"  # the single format that is compared for all linears
SPEED_TOKENS, SPEED_RUNS, SPEED_REPEATS = 48, 7, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma"])
    parser.add_argument("--recipes", nargs="*", default=["Q4_K_M", "Q3_K_M", "Q2_K"])
    parser.add_argument("--held-out", default="documentation")
    parser.add_argument("--calibration", default="")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--workdir", type=Path, help="keep the measurement here")
    parser.add_argument(
        "--uniform", action="store_true", help=f"also compare {UNIFORM} for all linears (measures more formats)"
    )
    parser.add_argument("--as-is", action="store_true", help="leave the references on their grids")
    parser.add_argument("--output", type=Path, help="append the figures as one JSON line per model")
    options = parser.parse_args()
    console = Console(width=160)
    for model in options.models:
        source = reference(model) if options.as_is else off_grid(reference(model))
        with tempfile.TemporaryDirectory() as scratch:
            work = (options.workdir or Path(scratch)) / model
            figures = run(source, work, options, console)
        console.print(figures)
        if options.output:
            with open(options.output, "a", encoding="utf-8") as file:
                file.write(json.dumps({"model": model, **figures}) + "\n")


def run(source: Path, work: Path, options: argparse.Namespace, console: Console) -> dict[str, float]:
    """The figures of one model: KL over that of llama.cpp's file for each recipe, and speed over its speed."""
    settings = Settings(
        container="gguf",
        formats=WITH_UNIFORM if options.uniform else (),
        calibration=options.calibration,
        sequences=options.sequences,
    )
    started = time.perf_counter()
    measured = measure(Subject.open(source, settings), work, Reporter())
    figures = {"seconds_measured": time.perf_counter() - started}
    files_of, table_ = measured.subject.source, measured.sensitivity
    importance = importance_matrix(files_of, torch.stack([sample.ids for sample in measured.folds.all]))
    plans: dict[str, Plan] = {}
    for name in options.recipes:
        plans[f"llama.cpp {name}"] = theirs = plan_of(files_of, recipe_of(files_of.spec, name), LLAMA_CPP)
        plans[f"ours, bytes of {name}"] = allocate(table_, f"{theirs.nbytes}B", frontier=False)
    if options.uniform:
        linears = {w.name: UNIFORM if w.kind is Kind.LINEAR else "q8_0" for w in files_of.spec.weights}
        plans[f"llama.cpp {UNIFORM}"] = plan_of(files_of, linears, LLAMA_CPP)
        plans[f"ours, {UNIFORM}"] = plan_of(files_of, linears, Rounding.CALIBRATED)
    files = {}
    for label, plan in plans.items():
        files[label] = work / f"{label.replace(' ', '-').replace(',', '')}.gguf"
        files[label].unlink(missing_ok=True)
        written = GGUF.write({files[label]: plan}, files_of, encoder(measured, importance))[files[label]]
        assert written == plan.nbytes == files[label].stat().st_size
    samples = list(held_out(measured.subject.tokenizer, options.held_out, 8, 512).samples)
    candidates = [Candidate(label, str(path)) for label, path in files.items()]
    divergences = compare(Candidate("16 bit", str(source), dtype="float32"), candidates, Probe.of(samples))
    predicted = {label: plan.check_nats for label, plan in plans.items()}
    entries = tuple(Entry(d.label, plans[d.label].nbytes, d, predicted[d.label]) for d in divergences)
    console.print(table(entries))
    kl = {d.label: d.kl for d in divergences}
    for name in options.recipes:
        figures[f"kl_over_{name}"] = kl[f"ours, bytes of {name}"] / kl[f"llama.cpp {name}"]
        figures[f"bytes_over_{name}"] = plans[f"ours, bytes of {name}"].nbytes / plans[f"llama.cpp {name}"].nbytes
    if options.uniform:
        figures[f"kl_over_{UNIFORM}"] = kl[f"ours, {UNIFORM}"] / kl[f"llama.cpp {UNIFORM}"]
    first = options.recipes[0]
    for repeat in range(SPEED_REPEATS):
        ratio = speed_ratio(files[f"ours, bytes of {first}"], files[f"llama.cpp {first}"], samples[0].ids)
        figures[f"speed_over_{first}, {repeat + 1}"] = ratio
    return figures


def encoder(measured: Measurement, importance: dict[str, Tensor]) -> PackedOf:
    """Codes of a weight: ours as measured, or llama.cpp's."""
    theirs = llama_cpp_codes(measured.subject.source, importance)

    def packed_of(weight: Weight, format: str, rounding: Rounding) -> Packed:
        return (theirs if rounding == LLAMA_CPP else measured.packed_of)(weight, format, rounding)

    return packed_of


def speed_ratio(ours: Path, theirs: Path, ids: Tensor) -> float:
    """Tokens per second of ours over those of theirs, the median of interleaved runs."""
    seconds: dict[Path, list[float]] = {ours: [], theirs: []}
    runtimes = {path: LlamaCpp(path, 256) for path in (ours, theirs)}
    for _ in range(SPEED_RUNS):
        for path, runtime in runtimes.items():
            started = time.perf_counter()
            runtime.greedy(ids[None, :16], SPEED_TOKENS)
            seconds[path].append(time.perf_counter() - started)
    return sorted(seconds[theirs])[SPEED_RUNS // 2] / sorted(seconds[ours])[SPEED_RUNS // 2]


if __name__ == "__main__":
    main()
