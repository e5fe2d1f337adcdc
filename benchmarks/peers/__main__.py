"""The table against every peer: python -m benchmarks.peers [smollm2] [gemma] [qwen] [--only TEXT] [--workdir DIR].

Each peer is installed from pinned requirements into an environment of its own, quantizes the same 16-bit model with the same
calibration tokens, and is loaded again by its own runtime in a fresh process, where its divergence is measured on the same
held-out text. For each, Bitwright is given no more bytes than the peer took. Rows are appended to the data file; the page of
docs/ and its plot are made from that by ``python -m benchmarks.peers.table``.

The references come from GGUF files and lie on those formats' grids; benchmarks.models.off_grid moves them off, exactly.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.models import off_grid, reference
from benchmarks.peers.rows import OWN, QUICK, ROWS, Row
from bitwright.checkpoint.headers import read_header
from bitwright.checkpoint.open import open_checkpoint
from bitwright.containers.registry import container_of
from bitwright.data.documentation import DOCUMENTATION, documentation
from bitwright.data.folds import MIN_SAMPLES
from bitwright.data.held_out import held_out
from bitwright.data.probe import Probe
from bitwright.data.samples import Sample, cut
from bitwright.data.tokenizer import tokenizer_of
from bitwright.evaluate.evaluate import Candidate, compare
from bitwright.host.device import quick_dtype
from bitwright.models.open import open_model
from bitwright.plan import NOISE_FLOOR

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
ROOT = HERE.parent.parent
TORCH = "torch==2.13.0"
MEASURED_WITH = "jaxtyping"  # of the pure functions of our evaluation, which runs in the environment of the peer
LENGTH = 256  # tokens of a calibration sequence
HEAD = "lm_head.weight"
FIGURES = ("kl", "kl_low", "kl_high", "top1", "perplexity", "reference_perplexity")
OF_PEER = (*FIGURES, "nbytes", "bits_per_parameter", "bits_per_weight", "seconds", "processor_seconds", "peak_nbytes", "failed")
IS_QUICK = quick_dtype(torch.device("cpu")) == torch.bfloat16
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma"])
    parser.add_argument("--only", nargs="*", default=[""], help="rows whose label holds one of these texts")
    parser.add_argument("--workdir", type=Path, default=Path("peers-work"))
    parser.add_argument("--held-out", default=DOCUMENTATION)
    parser.add_argument("--sequences", type=int, default=128, help=f"of calibration, {LENGTH} tokens each")
    parser.add_argument("--timeout", type=int, default=7200, help="seconds for one step of one peer")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--ours", action="store_true", help="measure ours anew beside what is recorded of the peers")
    options = parser.parse_args()
    options.workdir = options.workdir.absolute()
    for name in options.models:
        setting = Setting(name, options)
        for row in ROWS:
            if name in row.models and any(text.lower() in row.label.lower() for text in options.only):
                setting.record(row, setting.line(row))


class Setting:
    """One model, its texts, and the reference's kept distributions."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.source = off_grid(reference(name))
        self.work = options.workdir / name
        self.work.mkdir(parents=True, exist_ok=True)
        tokenizer = tokenizer_of(self.source)
        self.ids = torch.stack([sample.ids for sample in held_out(tokenizer, options.held_out, 8, 512).samples])
        samples = cut(documentation(0, 2), tokenizer, options.sequences, LENGTH, DOCUMENTATION, MIN_SAMPLES)
        self.calibration = torch.stack([sample.ids for sample in samples])
        self.checkpoint = open_checkpoint(self.source)
        floor = self.divergence(NOISE_FLOOR, self.source)
        self.reference_file = next((self.work / "references").glob("*.safetensors"))
        refs = self.checkpoint.refs
        self.n_parameters = sum(prod(ref.shape) for ref in refs.values())
        linears = {weight.name for weight in open_model(self.checkpoint).spec.weights}
        self.n_linear = sum(prod(ref.shape) for name, ref in refs.items() if name in linears)
        self.floor = {"nbytes": sum(ref.nbytes for ref in refs.values()), **brief(floor)}

    def line(self, row: Row) -> dict[str, Any]:
        """The peer in two fresh processes of its environment, then ours at no more bytes."""
        theirs = self.recorded(row) if self.options.ours else self.peer(row)
        if "kl" not in theirs:
            return theirs
        return {**theirs, "ours": self.ours(row, theirs["nbytes"])}

    def recorded(self, row: Row) -> dict[str, Any]:
        """What the data file has of the peer with the same texts; where it has several lines, the last."""
        wanted = {"model": self.name, "label": row.label, **self.texts()}
        lines = [json.loads(line) for line in self.options.output.read_text(encoding="utf-8").splitlines()]
        found = [line for line in lines if wanted.items() <= line.items()]
        return {key: value for key, value in found[-1].items() if key in OF_PEER} if found else {"failed": "not recorded"}

    def texts(self) -> dict[str, Any]:
        """On how much text everybody is calibrated and compared."""
        return {"held_out": self.options.held_out, "sequences": self.options.sequences}

    def peer(self, row: Row) -> dict[str, Any]:
        """Quantize and measure; what failed, and how, where it did."""
        out = self.work / row.label.replace(" ", "-").replace(",", "")
        job = {
            "adapter": row.adapter,
            "options": given(row),
            "model": str(self.source),
            "calibration": self.calibration.tolist(),
            "ids": self.ids.tolist(),
            "out": str(out),
            "label": row.label,
            "reference_file": str(self.reference_file),
        }
        shutil.rmtree(out, ignore_errors=True)
        try:
            python = environment(self.options.workdir, row.environment)
        except subprocess.CalledProcessError as error:
            return {"failed": f"install: {error}"}
        made = self.step([str(python), str(HERE / "runner.py"), "quantize"], job, f"{out.name}.quantize.log")
        if "error" in made:
            return {"failed": f"quantize: {made['error']}"}
        nbytes = made.pop("nbytes") or stored_nbytes(out, tied=HEAD not in self.checkpoint.refs)
        line = {"nbytes": nbytes, **self.bits(nbytes), **made}
        found = self.step([str(python), str(HERE / "runner.py"), "evaluate"], job, f"{out.name}.evaluate.log")
        if "error" in found:
            return {**line, "failed": f"load: {found['error']}"}
        return {**line, **brief(found["divergence"])}

    def ours(self, row: Row, nbytes: int) -> dict[str, Any]:
        """Bitwright with the same calibration tokens and no more bytes."""
        out = self.work / f"ours{container_of(row.ours).suffix}"
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)
        job = {
            "source": str(self.source),
            "work": str(self.work / f"ours-{row.ours}"),
            "out": str(out),
            "nbytes": nbytes,
            "container": row.ours,
            "calibration": DOCUMENTATION,
            "sequences": self.options.sequences,
            "length": LENGTH,
            "pins": [*row.pins, *self.head(row)],
        }
        made = self.step([sys.executable, "-m", "benchmarks.peers.ours"], job, "ours.log")
        if "error" in made:
            return {"failed": made["error"]}
        return {**made, **self.bits(made["nbytes"]), **brief(self.divergence("bitwright", out))}

    def head(self, row: Row) -> list[str]:
        """The pin of a head with weights of its own, which no peer but llama.cpp quantizes."""
        return [] if HEAD not in self.checkpoint.refs or container_of(row.ours).suffix else ["vocabulary=16bit"]

    def step(self, command: list[str], job: dict[str, Any], log_name: str) -> dict[str, Any]:
        """Run one step; a peer that hangs or is killed is a failure, not the end of the table."""
        job_path, result = self.work / "job.json", self.work / "result.json"
        job_path.write_text(json.dumps(job), encoding="utf-8")
        result.unlink(missing_ok=True)
        environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "HF_HUB_OFFLINE": "1"}
        with open(self.work / log_name, "w", encoding="utf-8") as log:
            words = [*command, str(job_path), str(result)]
            try:
                subprocess.run(
                    words, env=environ, stdout=log, stderr=log, timeout=self.options.timeout, check=False, cwd=self.work
                )
            except subprocess.TimeoutExpired:
                return {"error": f"not done after {self.options.timeout} s"}
        return json.loads(result.read_text(encoding="utf-8")) if result.exists() else {"error": "the process died"}

    def divergence(self, label: str, path: Path) -> dict[str, Any]:
        """Of a checkpoint that our own environment loads."""
        found = compare(
            Candidate("16 bit", str(self.source), dtype="float32"),
            [Candidate(label, str(path))],
            Probe.of([Sample.of(row) for row in self.ids]),
            references=self.work / "references",
            fingerprint=self.checkpoint.fingerprint,
        )
        return asdict(found[0])

    def bits(self, nbytes: int) -> dict[str, float]:
        """Bits per parameter of the whole model, and per weight of its linears when all else counts 16 bit."""
        others = 2 * (self.n_parameters - self.n_linear)
        return {"bits_per_parameter": 8 * nbytes / self.n_parameters, "bits_per_weight": 8 * (nbytes - others) / self.n_linear}

    def record(self, row: Row, line: dict[str, Any]) -> None:
        """Append a row to the data file and show it."""
        how = {
            "environment": row.environment,
            "options": given(row),
            "gguf": bool(container_of(row.ours).suffix),
            "container": row.ours,
        }
        texts = {**self.texts(), "bitwright": version("bitwright")}
        whole = {"date": date.today().isoformat(), "model": self.name, "label": row.label, **how, **texts, **line}
        whole["floor"] = self.floor
        with open(self.options.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(whole) + "\n")
        console.print(whole)


def given(row: Row) -> dict[str, Any]:
    """The options of a row, with what this machine says of them."""
    return {name: IS_QUICK if value == QUICK else value for name, value in row.options.items()}


def brief(divergence: dict[str, Any]) -> dict[str, Any]:
    """The figures of a row."""
    return {name: divergence[name] for name in FIGURES}


def stored_nbytes(out: Path, tied: bool) -> int:
    """Bytes of all tensors in the files, a ``tied`` head that was stored again not counted; of a GGUF file all of it."""
    if files := list(out.rglob("*.gguf")):
        return sum(path.stat().st_size for path in files)
    refs = {name: ref for path in sorted(out.rglob("*.safetensors")) for name, ref in read_header(path).items()}
    return sum(ref.nbytes for name, ref in refs.items() if not (tied and name.endswith(HEAD)))


def environment(work: Path, name: str) -> Path:
    """The Python of the environment ``name``, installed from its requirements on first use."""
    if name == OWN:
        return Path(sys.executable)
    directory, requirements = work / "environments" / name, HERE / "requirements" / f"{name}.txt"
    python, done = directory / "bin" / "python", directory / "installed"
    if not done.exists():
        venv.create(directory, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", TORCH, MEASURED_WITH], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)
        done.touch()
    return python


if __name__ == "__main__":
    sys.exit(main())
