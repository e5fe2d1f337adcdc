"""python -m benchmarks.cost — peak memory of a streamed run above the bare libraries; --scaling: how time and memory grow.

A random llama in bfloat16 (1.5 billion parameters by default) is measured in a process of its own, whose peak resident set
is read when ``--measured`` blocks are done: forward sweep, label sampling and those blocks have passed, and the blocks that
would follow have the same shapes. ``--measured 0`` lets it run to the end.

``--scaling`` does so for random llamas of 50 to 800 million parameters and fits time and peak memory (above the libraries) as
powers of the size. The time of a whole run is that until the first block is done and then as much for every further one as
between the last two that were measured.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.models import random_llama

LIBRARIES = (
    "import torch, transformers, bitsandbytes, scipy.optimize, bitwright.pipeline; torch.ones(64, 64) @ torch.ones(64, 64)"
)
SIZES = ((384, 1024, 7), (512, 1408, 16), (768, 2048, 18), (1024, 2816, 23), (1536, 4096, 23))  # hidden, inner, blocks
MEASURE = """
from bitwright import Settings, measure
measure({source!r}, {out!r}, workdir={work!r}, settings=Settings(
    sequences={sequences}, length={length}, calibration='documentation', max_memory={ceiling}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=5504)
    parser.add_argument("--blocks", type=int, default=26)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--sequences", type=int, default=12)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--measured", type=int, default=2, help="blocks after which the peak is read; 0: all")
    parser.add_argument("--max-memory", type=int, default=None, help="ceiling in bytes, to see that it is kept")
    parser.add_argument("--scaling", action="store_true", help="50 to 800 million parameters, and the exponents")
    options = parser.parse_args()
    if options.scaling:
        scaling(options)
        return
    bare = bare_nbytes()
    line = measured_line(options, (options.hidden, options.inner, options.blocks), bare)
    print(json.dumps(line | {"bare_libraries_gb": bare / 1e9}, indent=1))


def scaling(options: argparse.Namespace) -> None:
    """One line a size, and the exponents."""
    bare, lines = bare_nbytes(), []
    for shape in SIZES:
        lines.append(measured_line(options, shape, bare))
        print(json.dumps(lines[-1]), flush=True)
    parameters = [line["parameters"] for line in lines]
    time_power, memory_power = (
        exponent(parameters, [line[key] for line in lines]) for key in ("seconds", "above_libraries_gb")
    )
    print(json.dumps({"time_exponent": time_power, "memory_exponent": memory_power}))


def exponent(sizes: list[float], costs: list[float]) -> float:
    """Slope of log cost over log size, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    return statistics.linear_regression(x, y).slope


def bare_nbytes() -> int:
    """Resident bytes of a process that loaded the libraries and nothing else."""
    with tempfile.TemporaryDirectory() as scratch:
        return peak_nbytes(f"{LIBRARIES}\nimport time; time.sleep(3)", Path(scratch), 0)[0]


def measured_line(options: argparse.Namespace, shape: tuple[int, int, int], bare: int) -> dict[str, float]:
    """Time and peak memory of one random llama of (hidden, inner, blocks)."""
    hidden, inner, blocks = shape
    with tempfile.TemporaryDirectory() as scratch:
        source, work = Path(scratch) / "model", Path(scratch) / "work"
        parameters = random_llama(source, hidden, inner, blocks, options.vocabulary)
        code = MEASURE.format(
            source=str(source),
            out=str(Path(scratch) / "s.json"),
            work=str(work),
            sequences=options.sequences,
            length=options.length,
            ceiling=options.max_memory,
        )
        peak, ends = peak_nbytes(code, work, options.measured)
    done = len(ends)
    whole = ends[0] + (blocks - 1) * (ends[-1] - ends[-2])
    weights = 2 * parameters
    return {
        "parameters": parameters,
        "weights_gb": weights / 1e9,
        "peak_gb": peak / 1e9,
        "above_libraries_gb": (peak - bare) / 1e9,
        "above_libraries_over_weights": (peak - bare) / weights,
        "blocks": blocks,
        "blocks_measured": done,
        "seconds": whole,
    }


def peak_nbytes(code: str, work: Path, measured: int) -> tuple[int, list[float]]:
    """Peak resident set of a process that runs ``code``, read until it ends or ``measured`` blocks are done; when each was."""
    start, peak, ends = time.perf_counter(), 0, []
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            peak = max(peak, int(found[1]) * 1024)
        while len(ends) < len(list(work.glob("*/block-*.json"))):
            ends.append(time.perf_counter() - start)
        if measured and len(ends) >= measured:
            process.kill()
            process.wait()
            return peak, ends
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"the measured process ended with exit code {process.returncode}")
    return peak, ends


if __name__ == "__main__":
    main()
