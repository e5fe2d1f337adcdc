"""python -m benchmarks.mixed [MODEL ...] — what mixing formats is worth: KL of our choice over one format of the same bytes.

Both are calibrated, stored as compressed-tensors with fused groups kept alike, and loaded by transformers. ``--workdir`` keeps
the measurement; that of ``python -m benchmarks.peers`` with as many sequences serves as well.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.models import off_grid, reference
from bitwright import Settings
from bitwright.allocate.allocate import allocate, uniform
from bitwright.data.documentation import DOCUMENTATION
from bitwright.data.held_out import held_out
from bitwright.data.probe import Probe
from bitwright.evaluate.evaluate import Candidate, compare
from bitwright.host.progress import Reporter
from bitwright.measure.measure import measure
from bitwright.measure.subject import Subject
from bitwright.plan import Rounding
from bitwright.prove.proof import write

SINGLE = ("w4-g32", "w4-g64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma"])
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--held-out", default=DOCUMENTATION)
    parser.add_argument("--workdir", type=Path, help="measurements lie in WORKDIR/MODEL/ours-compressed-tensors")
    options = parser.parse_args()
    for model in options.models:
        print(json.dumps({"model": model, **figures(model, options)}), flush=True)


def figures(model: str, options: argparse.Namespace) -> dict[str, object]:
    """KL of the mixed and of the uniform file for every format of SINGLE, at the bytes of the latter, and their ratio."""
    source = off_grid(reference(model))
    settings = Settings(container="compressed-tensors", calibration=DOCUMENTATION, sequences=options.sequences, length=256)
    with tempfile.TemporaryDirectory() as scratch:
        work = options.workdir / model / "ours-compressed-tensors" if options.workdir else Path(scratch) / "work"
        measured = measure(Subject.open(source, settings), work, Reporter())
        plans = {}
        for name in SINGLE:
            plans[f"all {name}"] = alone = uniform(measured.sensitivity, name, Rounding.CALIBRATED)
            plans[f"bytes of {name}"] = allocate(measured.sensitivity, f"{alone.nbytes}B", frontier=False)
        places = {Path(scratch) / label.replace(" ", "-"): plan for label, plan in plans.items()}
        for place in places:
            place.mkdir()
        write(measured, places, Reporter())
        samples = list(held_out(measured.subject.tokenizer, options.held_out, 8, 512).samples)
        candidates = [Candidate(label, str(place)) for label, place in zip(plans, places, strict=True)]
        wide = Candidate("16 bit", str(source), dtype="float32")
        kl = {found.label: found.kl for found in compare(wide, candidates, Probe.of(samples))}
    found: dict[str, object] = {}
    for name in SINGLE:
        alone, mixed = kl[f"all {name}"], kl[f"bytes of {name}"]
        found[name] = {"nbytes": plans[f"all {name}"].nbytes, "uniform": alone, "mixed": mixed, "ratio": mixed / alone}
    return found


if __name__ == "__main__":
    main()
