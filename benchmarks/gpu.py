"""python -m benchmarks.gpu — the main job with CUDA: the demo on the GPU and on the processor, and blocks of a large model.

``demo``: one line each for GPU and processor, with seconds by stage and the divergence of the result and of the stock format
from the 16-bit model. ``large``: a random llama with the block shapes of an 8-billion model is measured, a few blocks of it;
seconds of each block, what 32 of them would take, peak memory of the GPU and of the process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import bitwright
from benchmarks.models import random_llama
from bitwright import Settings
from bitwright.host.clock import Clock

BLOCKS = 32  # of an 8-billion llama


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["demo", "large"], help="demo, demo-cpu, large")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=14336)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--sequences", type=int, default=0, help="0: as many as a run of that width takes")
    parser.add_argument("--container", default="bitsandbytes")
    options = parser.parse_args()
    for part in options.parts:
        with tempfile.TemporaryDirectory() as scratch:
            line = large(options, Path(scratch)) if part == "large" else demo(part, options.container, Path(scratch))
        print(json.dumps({"part": part} | line), flush=True)


def demo(part: str, container: str, scratch: Path) -> dict[str, Any]:
    """The whole job on the demo model."""
    device = "cpu" if part.endswith("cpu") else "cuda"
    out = scratch / ("out.gguf" if container == "gguf" else "out")
    start = time.perf_counter()
    report = bitwright.quantize("demo", out, settings=Settings(container=container, device=device, compare=False))
    stock = report.verdict.entry(report.verdict.stock).divergence.kl
    return {
        "device": report.provenance["device"],
        "seconds": round(time.perf_counter() - start, 1),
        "stages": {stage: cost.seconds for stage, cost in report.stages.items()},
        "kl": report.result.divergence.kl,
        "stock_kl": stock,
        "kl_over_stock": report.result.divergence.kl / stock,
        "gpu_peak_gb": _gpu_peak(),
    }


def large(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """A few blocks of a large model, from headers to the table."""
    parameters = random_llama(scratch / "model", options.hidden, options.inner, options.blocks, options.vocabulary)
    clock, begun = Clock(), time.time()
    settings = Settings(container=options.container, device="cuda", calibration="documentation", sequences=options.sequences)
    table = bitwright.measure(scratch / "model", scratch / "s.json", workdir=scratch / "work", settings=settings)
    clock.lap("measure")
    ends = sorted(path.stat().st_mtime - begun for path in (scratch / "work").glob("*/block-*.json"))
    each = [round(later - earlier, 1) for earlier, later in itertools.pairwise(ends)]
    return {
        "parameters": parameters,
        "sequences": table.provenance["sequences"],
        "seconds_until_first_block": round(ends[0], 1),
        "seconds_of_each_further": each,
        "minutes_of_32_blocks": round((ends[0] + (BLOCKS - 1) * each[0]) / 60, 1),
        "gpu_peak_gb": _gpu_peak(),
        **{f"process_{key}": value for key, value in asdict(clock.stages["measure"]).items()},
    }


def _gpu_peak() -> float:
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return round(peak, 2)


if __name__ == "__main__":
    main()
