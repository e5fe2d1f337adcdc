"""Bitwright under a peer's conditions, in a process of its own: python -m benchmarks.peers.ours JOB OUT.

The measurement is kept in the work directory, so that every further budget costs its choice and its writing alone; what the
measurement cost when it was made is kept beside it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitwright import Settings
from bitwright.allocate.allocate import allocate
from bitwright.checkpoint.output import atomic_output
from bitwright.containers.registry import container_of
from bitwright.host.clock import Clock
from bitwright.host.progress import Reporter
from bitwright.measure.measure import measure
from bitwright.measure.subject import Subject
from bitwright.prove.proof import write


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Measure ``source`` unless that is done, choose within ``nbytes``, write; returns bytes and the cost of each stage."""
    work, out = Path(job["work"]), Path(job["out"])
    settings = Settings(
        container=job["container"], calibration=job["calibration"], sequences=job["sequences"], length=job["length"]
    )
    clock = Clock()
    measured = measure(Subject.open(job["source"], settings), work, Reporter())
    clock.lap("measure")
    plan = allocate(measured.sensitivity, f"{job['nbytes']}B", pins=tuple(job["pins"]), frontier=False)
    clock.lap("allocate")
    with atomic_output(out, bool(container_of(job["container"]).suffix)) as place:
        write(measured, {place: plan}, Reporter())
    clock.lap("write")
    stages = {name: asdict(stage) for name, stage in clock.stages.items()}
    first = work / "first-measurement.json"
    if not first.exists():
        first.write_text(json.dumps(stages["measure"]), encoding="utf-8")
    stages["measure"] = json.loads(first.read_text(encoding="utf-8"))
    return {
        "nbytes": plan.nbytes,
        "predicted_nats": plan.check_nats,
        "stages": stages,
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "processor_seconds": sum(stage["processor_seconds"] for stage in stages.values()),
        "peak_nbytes": max(stage["peak_nbytes"] for stage in stages.values()),
    }


def main() -> None:
    job_path, out_path = Path(sys.argv[1]), Path(sys.argv[2])
    job = json.loads(job_path.read_text(encoding="utf-8"))
    out_path.write_text(json.dumps(run(job)), encoding="utf-8")


if __name__ == "__main__":
    main()
