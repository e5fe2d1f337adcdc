"""python -m benchmarks.repair MODEL — what training in the format recovers: bits x steps, with intervals.

A reference is quantized with calibration to a mixture near some bits a weight, then repaired (docs/repair.md). Printed are KL
divergence from the 16-bit model on held-out text before and after, their ratio, and the share of the loss that was recovered
with its 95 % interval.

  python -m benchmarks.repair smollm2 --bits 2.6 --minutes 60
  python -m benchmarks.repair smollm2 --bits 2.6,3,3.5 --steps 30,60      the table
  python -m benchmarks.repair gemma --formats q4_0 --minutes 110     every linear in Q4_0, as Gemma 3's QAT checkpoints
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import bitwright
from benchmarks.models import REFERENCES, reference
from bitwright import Settings

LOW = ("w2-g32", "w3-g32", "w4-g32")
HELD_OUT = 32  # sequences of 512 tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=REFERENCES, nargs="?", default="smollm2")
    parser.add_argument("--bits", default="2.6", help="a weight, of a mixture of 2 to 4 bits in groups of 32; or several")
    parser.add_argument("--formats", default="", help="one GGUF format for every linear instead")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", default="", help="several numbers, separated by commas, instead of --minutes")
    parser.add_argument("--sequences", type=int, default=512, help="of training text")
    parser.add_argument("--calibration", default="", help="what is trained on; left out: as measuring is calibrated")
    parser.add_argument("--held-out", default="documentation")
    parser.add_argument("--learning-rate", type=float, default=0.0)
    options = parser.parse_args()
    source = reference(options.model)
    with tempfile.TemporaryDirectory() as name:
        for bits in options.bits.split(","):
            for steps in [int(part) for part in options.steps.split(",")] if options.steps else [0]:
                out = quantized(options, float(bits), source, Path(name))
                line = repaired(options, steps, out, source, Path(name) / "repair")
                print(json.dumps({"bits": options.formats or float(bits)} | line), flush=True)


def repaired(options: argparse.Namespace, steps: int, out: Path, source: Path, workdir: Path) -> dict[str, Any]:
    """What ``steps`` steps make of ``out``, or as many as fit into the minutes."""
    rate = {"learning_rate": options.learning_rate} if options.learning_rate else {}
    settings = Settings(
        sequences=options.sequences, calibration=options.calibration, held_out=options.held_out, held_out_sequences=HELD_OUT
    )
    found = bitwright.repair(out, str(source), minutes=options.minutes, steps=steps, settings=settings, workdir=workdir, **rate)
    kl = {"before": round(found.before.kl, 4), "after": round(found.after.kl, 4), "ratio": round(found.ratio, 3)}
    low, high = (round(nats / found.before.kl, 3) for nats in found.gain)
    recovered = {"recovered": round(1 - found.ratio, 3), "from": low, "to": high}
    return kl | recovered | {"steps": found.steps, "seconds": found.seconds}


def quantized(options: argparse.Namespace, bits: float, source: Path, folder: Path) -> Path:
    """The reference quantized with calibration; measured once."""
    if options.formats:
        out, container, formats = folder / "model.gguf", "gguf", (options.formats, "q8_0")
        settings = Settings(container=container, formats=formats, sequences=64, compare=False)
        pins = (f"*_proj={options.formats}", "*embed*=q8_0")
        bitwright.quantize(source, out, "16bpw", pins=pins, settings=settings, workdir=folder / "measured", overwrite=True)
        return out
    out = folder / "model"
    settings = Settings(container="compressed-tensors", formats=LOW, sequences=64, compare=False, fused_groups=False)
    bitwright.quantize(source, out, f"{bits}bpw", settings=settings, workdir=folder / "measured", overwrite=True)
    return out


if __name__ == "__main__":
    main()
