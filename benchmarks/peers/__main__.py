"""The table against every peer: python -m benchmarks.peers [smollm2] [gemma] [--only TEXT] [--workdir DIR].

Each peer is installed from pinned requirements into an environment of its own, quantizes the same 16-bit model with the same
calibration tokens, and is loaded again by its own runtime in a fresh process, where its divergence is measured on the same
held-out text. For each, Bitwright is given no more bytes than the peer took. Rows are appended to the data file; the page of
docs/ is made from it by ``python -m benchmarks.peers.table``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from datetime import date
from math import prod
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.models import reference
from benchmarks.peers.rows import ROWS, Row
from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.checkpoint.headers import read_header
from bitwright.evaluate.reference import save
from bitwright.evaluate.runtime import load, logits_of
from bitwright.evaluate.worker import condense_sequence
from bitwright.measure.calibration import sequences_of
from bitwright.measure.documentation import documentation
from bitwright.measure.prepare import held_out_ids, tokenizer_of
from bitwright.models.skeleton import build_skeleton

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
ROOT = HERE.parent.parent
TORCH = "torch==2.13.0"
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma"])
    parser.add_argument("--only", default="", help="rows whose label holds this text")
    parser.add_argument("--workdir", type=Path, default=Path("peers-work"))
    parser.add_argument("--held-out", default="documentation")
    parser.add_argument("--sequences", type=int, default=128, help="of calibration, 256 tokens each")
    parser.add_argument("--timeout", type=int, default=7200, help="seconds for one step of one peer")
    parser.add_argument("--ours", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.workdir = options.workdir.absolute()
    for name in options.models:
        setting = Setting(name, options)
        for row in ROWS:
            if options.only.lower() in row.label.lower():
                setting.record(row.label, setting.peer(row), {"environment": row.environment, "options": row.options})


class Setting:
    """One model, its texts, and the reference's kept distributions."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.source = reference(name)
        self.work = options.workdir / name
        self.work.mkdir(parents=True, exist_ok=True)
        tokenizer = tokenizer_of(self.source)
        self.ids = held_out_ids(tokenizer, options.held_out, 8, 512)
        self.calibration = sequences_of(documentation(0, 2), tokenizer, options.sequences, 256, "documentation")
        self.reference_file = self.work / "reference.safetensors"
        if not self.reference_file.exists():
            model = load(
                {"path": str(self.source), "dtype": "float32", "quantize": False, "trust_remote_code": False}, "cpu", 0
            )
            stream = zip(logits_of(model, self.ids, "cpu"), self.ids, strict=True)
            with torch.no_grad():
                save(self.reference_file, [condense_sequence(parts, row) for parts, row in stream], None)
        spec = build_skeleton(Checkpoint.of_directory(self.source)).spec
        linears = {w.name for w in spec.weights}
        refs = Checkpoint.of_directory(self.source).refs
        self.n_linear = sum(prod(ref.shape) for name, ref in refs.items() if name in linears)
        self.other_nbytes = sum(2 * prod(ref.shape) for name, ref in refs.items() if name not in linears)

    def peer(self, row: Row) -> dict[str, Any]:
        """Quantize and measure in two fresh processes of the peer's environment, then ours at no more bytes."""
        out = self.work / row.label.replace(" ", "-").replace(",", "")
        job = {
            "adapter": row.adapter, "options": row.options, "model": str(self.source), "calibration": self.calibration.tolist(),
            "ids": self.ids.tolist(), "out": str(out), "label": row.label, "reference_file": str(self.reference_file),
        }  # fmt: skip
        job_path = self.work / "job.json"
        job_path.write_text(json.dumps(job), encoding="utf-8")
        python = environment(self.options.workdir, row.environment)
        subprocess.run(["rm", "-rf", str(out)], check=True)
        made = self.step(python, "quantize", job_path, out)
        if "error" in made:
            return {"failed": f"quantize: {made['error']}"}
        nbytes = stored_nbytes(out)
        found = self.step(python, "evaluate", job_path, out)
        line = {"nbytes": nbytes, "bits_per_weight": self.bits_per_weight(nbytes), **made}
        if "error" in found:
            return {**line, "failed": f"load: {found['error']}"}
        line |= brief(found["divergence"])
        return {**line, "ours": self.ours(nbytes)} if self.options.ours else line

    def step(self, python: Path, name: str, job_path: Path, out: Path) -> dict[str, Any]:
        """Run one step; a peer that hangs or is killed is a failure, not the end of the table."""
        result = self.work / "result.json"
        result.unlink(missing_ok=True)
        environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "HF_HUB_OFFLINE": "1"}
        with open(f"{out}.{name}.log", "w", encoding="utf-8") as log:
            command = [str(python), str(HERE / "runner.py"), name, str(job_path), str(result)]
            try:
                subprocess.run(command, env=environ, stdout=log, stderr=log, timeout=self.options.timeout, check=False)
            except subprocess.TimeoutExpired:
                return {"error": f"not done after {self.options.timeout} s"}
        return json.loads(result.read_text(encoding="utf-8")) if result.exists() else {"error": "the process died"}

    def ours(self, nbytes: int) -> dict[str, Any]:
        """Bitwright with the same calibration tokens and no more bytes; the measurement is shared by all budgets."""
        out, sizes = self.work / "ours", ["--sequences", str(self.options.sequences), "--length", "256"]
        subprocess.run(["rm", "-rf", str(out)], check=True)
        texts = ["--calibration", "documentation", "--held-out", self.options.held_out]
        command = [sys.executable, "-m", "bitwright.cli.main", "quantize", str(self.source), str(out), "--budget", f"{nbytes}B"]
        command += [*texts, *sizes, "--workdir", str(self.work / "ours-work"), "--no-compare", "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        report = json.loads(done.stdout)
        if "error" in report:
            return {"failed": f"{report['error']['rule']}: {report['error']['saw']}"}
        first = self.work / "ours-measured.json"
        if not first.exists():  # the first run measured; later ones find its pieces
            first.write_text(json.dumps(report["stages"]["measure"]), encoding="utf-8")
        stages = {**report["stages"], "measure": json.loads(first.read_text(encoding="utf-8"))}
        making = [stages[name] for name in ("measure", "allocate", "write")]
        verdict = report["verdict"]
        shipped = next(entry for entry in verdict["entries"] if entry["label"] == verdict["shipped"])
        return {
            "nbytes": shipped["nbytes"], "bits_per_weight": self.bits_per_weight(shipped["nbytes"]),
            "seconds": sum(stage["seconds"] for stage in making),
            "processor_seconds": sum(stage["processor_seconds"] for stage in making),
            "peak_nbytes": max(stage["peak_nbytes"] for stage in making), "stages": stages, **brief(shipped["divergence"]),
        }  # fmt: skip

    def bits_per_weight(self, nbytes: int) -> float:
        """Bits of each weight of the linears when ``nbytes`` are stored in all."""
        return 8 * (nbytes - self.other_nbytes) / self.n_linear

    def record(self, label: str, line: dict[str, Any], how: dict[str, Any]) -> None:
        """Append a row to the data file and show it."""
        whole = {"date": date.today().isoformat(), "model": self.name, "label": label, **how, **line}
        with open(self.options.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(whole) + "\n")
        console.print(whole)


def brief(divergence: dict[str, Any]) -> dict[str, Any]:
    """The figures of a row."""
    return {name: divergence[name] for name in ("kl", "kl_low", "kl_high", "top1", "perplexity", "reference_perplexity")}


def stored_nbytes(out: Path) -> int:
    """Bytes of all tensors in the files, a tied head that was stored again not counted."""
    refs = {name: ref for path in sorted(out.rglob("*.safetensors")) for name, ref in read_header(path).items()}
    tied = [n for n in refs if n.endswith("lm_head.weight") and any(
        m.endswith("embed_tokens.weight") and refs[m].shape == refs[n].shape for m in refs)]  # fmt: skip
    return sum(ref.nbytes for name, ref in refs.items() if name not in tied)


def environment(work: Path, name: str) -> Path:
    """The Python of the environment ``name``, installed from its requirements on first use."""
    directory, requirements = work / "environments" / name, HERE / "requirements" / f"{name}.txt"
    python, done = directory / "bin" / "python", directory / "installed"
    if not done.exists():
        venv.create(directory, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", TORCH], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)
        done.touch()
    return python


if __name__ == "__main__":
    sys.exit(main())
