"""One step of one peer, inside its environment: python runner.py quantize|evaluate JOB OUT.

Writes what quantizing cost, the divergence, or {"error"} as JSON to OUT. It imports the pure parts of Bitwright's evaluation,
so that every row is measured by the same arithmetic on the same kept reference.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch


def quantize(job: dict[str, Any], adapter: Any) -> dict[str, Any]:
    """The peer's own quantization, timed from a loaded interpreter to saved files."""
    from bitwright.host.clock import Clock

    clock = Clock()
    adapter.quantize(Path(job["model"]), torch.tensor(job["calibration"]), Path(job["out"]), job["options"])
    clock.lap("quantize")
    counted = getattr(adapter, "nbytes", None)  # only a library that cannot write its files counts them
    return {**vars(clock.stages["quantize"]), "nbytes": counted(Path(job["out"])) if counted else None}


def evaluate(job: dict[str, Any], adapter: Any) -> dict[str, Any]:
    """Divergence of what was saved from the kept reference."""
    from dataclasses import asdict

    from bitwright.evaluate.divergence import summarize, token_figures
    from bitwright.evaluate.reference import load

    references, _ = load(Path(job["reference_file"]))
    model = adapter.load(Path(job["out"]))
    figures = []
    with torch.no_grad():
        for known, row in zip(references, torch.tensor(job["ids"]), strict=True):
            logits = model(row[None]).logits[0]
            parts = [slice(s, s + 128) for s in range(0, len(row), 128)]
            found = [token_figures(known.part(p), logits[p], row[p.start + 1 : p.stop + 1]) for p in parts]
            figures.append(type(found[0]).join(found))
    return {"divergence": asdict(summarize(job["label"], figures))}


def main() -> None:
    step, job_path, out_path = sys.argv[1:4]
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    try:
        adapter = importlib.import_module(f"benchmarks.peers.adapters.{job['adapter']}")
        result = {"quantize": quantize, "evaluate": evaluate}[step](job, adapter)
    except Exception as error:  # noqa: BLE001 - what failed and how is a column of the table
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]}
    Path(out_path).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
