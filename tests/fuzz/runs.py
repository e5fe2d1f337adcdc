"""Whole runs of a tiny model for the attacks: forked from a process that has the libraries, so that their time is the work's.

The process that forks runs no torch operation itself: threads do not survive a fork.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import transformers.models.llama.modeling_llama  # noqa: F401 - loaded once, before the forks

import bitwright
import bitwright.pipeline
from bitwright.errors import BitwrightError
from bitwright.finetune import train as training_loop
from bitwright.host.progress import Reporter

SUFFIX = {"bitsandbytes": "", "compressed-tensors": "", "gguf": ".gguf"}
TIMES = ("report.json", "report.html", "README.md")  # hold seconds
STEPS, BETWEEN = 16, 4  # of training, and between its checkpoints
MODEL = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from tests.conftest import COMMON, byte_tokenizer
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(**COMMON)).bfloat16().save_pretrained(sys.argv[1])
byte_tokenizer().save_pretrained(sys.argv[1])
"""


def tiny_model(folder: Path) -> Path:
    """A tiny llama with a tokenizer, made in a process of its own."""
    subprocess.run([sys.executable, "-c", MODEL, str(folder)], check=True, stderr=subprocess.DEVNULL)
    return folder


@dataclass
class Run:
    """A run that was started. ``code`` after ``wait``: 0, 2 for an error in words, 70 for another, negative for a signal."""

    pid: int
    code: int | None = None

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code, or None where the run goes on after ``seconds``."""
        end = time.monotonic() + (seconds if seconds is not None else 1e9)
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG if seconds is not None else 0)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= end:
                break
            else:
                time.sleep(0.002)
        return self.code

    def kill(self, group: bool) -> None:
        """End the process alone, or all that it started."""
        (os.killpg if group else os.kill)(self.pid, signal.SIGKILL)
        self.wait()


def start(source: Path, out: Path, container: str, log: Path) -> Run:
    """Quantize ``source`` into ``out`` in a forked process; what it says and its errors go to ``log``."""
    return start_job(partial(quantize, source, out, container), log)


def start_job(job: Callable[[], None], log: Path) -> Run:
    """Do ``job`` in a forked process; what it says and its errors go to ``log``."""
    if pid := os.fork():
        return Run(pid)
    code = 70
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1), os.dup2(handle, 2)
        job()
        code = 0
    except BitwrightError as error:
        code = 2
        print(error, file=sys.stderr, flush=True)
    except BaseException:  # noqa: BLE001 - whatever it is, the attack shall see it
        traceback.print_exc()
    finally:
        os._exit(code)


def quantize(source: Path, out: Path, container: str) -> None:
    settings = bitwright.Settings(
        container=container,
        sequences=12,
        length=32,
        held_out_sequences=6,
        held_out_length=32,
        dtype="float32",
        calibration="documentation",
        compare=False,
    )
    bitwright.quantize(source, out, "+20%", reporter=Reporter(quiet=True), settings=settings)


def finetune(model: Path, data: Path, out: Path) -> None:
    """An adapter beside the packed weights of ``model``."""
    training_loop.STEPS_BETWEEN = BETWEEN
    training = bitwright.Training(rank=4, length=64, max_steps=STEPS, held_out=0.25, device="cpu", dtype="float32")
    bitwright.finetune(model, str(data), out, training=training, reporter=Reporter(quiet=True))


def repair(out: Path, source: Path) -> None:
    """The codes of ``out``, trained."""
    training_loop.STEPS_BETWEEN = BETWEEN
    settings = bitwright.Settings(
        sequences=24, length=32, held_out_sequences=6, held_out_length=32, dtype="float32", calibration="documentation"
    )
    bitwright.repair(out, str(source), steps=STEPS, learning_rate=0.02, settings=settings, reporter=Reporter(quiet=True))


def digest(folder: Path, hidden: bool = True) -> str:
    """Hash of every file in ``folder`` but for the times in it; ``hidden``: of what people do not see, too."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        is_seen = hidden or not path.relative_to(folder).parts[0].startswith(".")
        if path.is_file() and is_seen and not path.name.endswith(TIMES):
            found.update(f"{path.relative_to(folder)}\n".encode() + _content(path))
    return found.hexdigest()


def _content(path: Path) -> bytes:
    if path.suffix != ".json":
        return path.read_bytes()
    return json.dumps(_timeless(json.loads(path.read_text(encoding="utf-8")))).encode()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(part) for name, part in value.items() if name != "seconds"}
    return [_timeless(part) for part in value] if isinstance(value, list) else value
