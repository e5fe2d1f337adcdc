"""python -m benchmarks.cost — peak memory of a streamed run above the bare libraries.

A random llama in bfloat16 (1.5 billion parameters by default) is measured in a process of its own, whose peak resident set
is read when ``--measured`` blocks are done: forward sweep, label sampling and those blocks have passed, and the blocks that
would follow have the same shapes. ``--measured 0`` lets it run to the end.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.models import random_llama

LIBRARIES = (
    "import torch, transformers, bitsandbytes, scipy.optimize, bitwright.pipeline; torch.ones(64, 64) @ torch.ones(64, 64)"
)
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source, work = Path(scratch) / "model", Path(scratch) / "work"
        parameters = random_llama(source, options.hidden, options.inner, options.blocks, options.vocabulary)
        bare, _ = peak_nbytes(f"{LIBRARIES}\nimport time; time.sleep(3)", work, 0)
        code = MEASURE.format(
            source=str(source), out=str(Path(scratch) / "s.json"), work=str(work), sequences=options.sequences,
            length=options.length, ceiling=options.max_memory,
        )  # fmt: skip
        peak, seconds = peak_nbytes(code, work, options.measured)
    weights = 2 * parameters
    print(json.dumps({
        "parameters": parameters, "weights_gb": weights / 1e9, "bare_libraries_gb": bare / 1e9, "peak_gb": peak / 1e9,
        "above_libraries_gb": (peak - bare) / 1e9, "above_libraries_over_weights": (peak - bare) / weights,
        "blocks_measured": options.measured or options.blocks, "seconds": seconds,
    }, indent=1))  # fmt: skip


def peak_nbytes(code: str, work: Path, measured: int) -> tuple[int, float]:
    """Peak resident set of a process that runs ``code``, read until it ends or ``measured`` blocks are done; and seconds."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            peak = max(peak, int(found[1]) * 1024)
        if measured and len(list(work.glob("*/block-*.json"))) >= measured:
            process.kill()
            process.wait()
            return peak, time.perf_counter() - start
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"the measured process ended with exit code {process.returncode}")
    return peak, time.perf_counter() - start


if __name__ == "__main__":
    main()
