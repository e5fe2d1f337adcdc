"""Whole runs of a tiny model for the attacks: forked from a process that has the libraries, so that their time is the work's.

The process that forks runs no torch operation itself: threads do not survive a fork.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import transformers.models.llama.modeling_llama  # noqa: F401 - loaded once, before the forks

import bitwright
import bitwright.pipeline
from bitwright.errors import BitwrightError
from bitwright.host.progress import Reporter

SUFFIX = {"bitsandbytes": "", "compressed-tensors": "", "gguf": ".gguf"}
TIMES = ("report.json", "report.html", "README.md")  # hold seconds
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
    if pid := os.fork():
        return Run(pid)
    code = 70
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1), os.dup2(handle, 2)
        _quantize(source, out, container)
        code = 0
    except BitwrightError as error:
        code = 2
        print(error, file=sys.stderr, flush=True)
    except BaseException:  # noqa: BLE001 - whatever it is, the attack shall see it
        traceback.print_exc()
    finally:
        os._exit(code)


def _quantize(source: Path, out: Path, container: str) -> None:
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


def digest(folder: Path) -> str:
    """Hash of every file in ``folder`` that holds no times."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(TIMES):
            found.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return found.hexdigest()
