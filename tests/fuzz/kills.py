"""python -m tests.fuzz.kills [--kills 200] [--containers ...] — kill a run at random moments, let it go on, compare bytes.

A tiny model is quantized into every container once without disturbance. Then again and again: each run is killed with SIGKILL,
the process alone or its whole group in turn, at random moments, until it comes to its end; what it wrote must be the same to
the last byte, and nothing else may lie beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import COMMON, byte_tokenizer

JOB = """
import sys
import bitwright
from bitwright.host.progress import Reporter
source, out, container = sys.argv[1:]
bitwright.quantize(source, out, "+20%", reporter=Reporter(quiet=True), settings=bitwright.Settings(
    container=container, sequences=12, length=32, held_out_sequences=6, held_out_length=32, dtype="float32",
    calibration="documentation", compare=False))
"""
SUFFIX = {"bitsandbytes": "", "compressed-tensors": "", "gguf": ".gguf"}
KILLS_A_RUN = 4  # then it is let go on to its end
TIMES = ("report.json", "report.html", "README.md")  # hold seconds


def model(folder: Path) -> Path:
    """A tiny llama with a tokenizer."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**COMMON)).bfloat16().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def digest(folder: Path) -> str:
    """Hash of every file in ``folder`` that holds no times."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(TIMES):
            found.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def start(source: Path, out: Path, container: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", JOB, str(source), str(out), container],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--containers", nargs="*", default=list(SUFFIX))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, kills, runs, wrong = random.Random(options.seed), 0, 0, []
    with tempfile.TemporaryDirectory() as scratch:
        source = model(Path(scratch) / "source")
        expected, seconds = {}, {}
        for container in options.containers:
            folder, began = Path(scratch) / f"whole-{container}", time.monotonic()
            folder.mkdir()
            assert start(source, folder / f"out{SUFFIX[container]}", container).wait() == 0, container
            expected[container], seconds[container] = digest(folder), time.monotonic() - began
        while kills < options.kills:
            container = options.containers[runs % len(options.containers)]
            folder = Path(scratch) / f"killed-{runs}"
            folder.mkdir()
            for _ in range(KILLS_A_RUN):
                process = start(source, folder / f"out{SUFFIX[container]}", container)
                try:
                    process.wait(chance.uniform(0.3, seconds[container]))
                    break  # it came to its end
                except subprocess.TimeoutExpired:
                    (os.killpg if kills % 2 else os.kill)(process.pid, signal.SIGKILL)
                    process.wait()
                    kills += 1
            else:
                process = start(source, folder / f"out{SUFFIX[container]}", container)
            code = process.wait()
            runs += 1
            if code or digest(folder) != expected[container]:
                wrong.append(f"{container}, run {runs}, exit code {code}: {sorted(p.name for p in folder.iterdir())}")
                print(wrong[-1], file=sys.stderr, flush=True)
    print(json.dumps({"kills": kills, "runs": runs, "other_bytes": wrong}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
