"""python -m benchmarks.cost — peak memory of a streamed run above the bare libraries, and time of every stage.

Each figure comes from a process of its own, so that the peak is that process's. Memory is the peak resident set.
"""

from __future__ import annotations

import argparse
import json
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
PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
MEASURE = """
from bitwright import Settings, measure
measure({source!r}, {out!r}, settings=Settings(sequences={sequences}, length={length}, calibration='documentation',
        formats={formats!r}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=5504)
    parser.add_argument("--blocks", type=int, default=27)
    parser.add_argument("--sequences", type=int, default=12)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--formats", default="", help="formats to measure instead of the container's menu")
    options = parser.parse_args()
    formats = tuple(filter(None, options.formats.split(",")))
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "model"
        parameters = random_llama(source, options.hidden, options.inner, options.blocks)
        bare = int(child(f"{LIBRARIES}; {PEAK}")[0])
        code = MEASURE.format(
            source=str(source), out=str(Path(scratch) / "s.json"), sequences=options.sequences, length=options.length,
            formats=formats,
        )  # fmt: skip
        peak, seconds = child(f"{code}\n{PEAK}")
        allocate = [child_seconds("bitwright", "allocate", "s.json", cwd=scratch) for _ in range(3)]
    weights = 2 * parameters
    print(json.dumps({
        "parameters": parameters, "weights_gb": weights / 1e9, "bare_libraries_gb": bare / 1e9, "peak_gb": int(peak) / 1e9,
        "above_libraries_gb": (int(peak) - bare) / 1e9, "above_libraries_over_weights": (int(peak) - bare) / weights,
        "measure_seconds": seconds, "allocate_seconds_median": statistics.median(allocate),
    }, indent=1))  # fmt: skip


def child(code: str) -> tuple[str, float]:
    """Last line that ``code`` prints in a process of its own, and its seconds."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().splitlines()[-1], time.perf_counter() - start


def child_seconds(command: str, *words: str, cwd: str) -> float:
    start = time.perf_counter()
    subprocess.run([str(Path(sys.executable).with_name(command)), *words], cwd=cwd, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
