"""python -m benchmarks.finetune_loss DATA — what an adapter learns beside a quantized file, against the same beside 16 bit.

SmolLM2-135M as it is, and quantized with calibration to stock NF4 +10 %; the same rows of DATA (a file with questions and
answers) in the same order, rank 16, all linears. Printed are the losses on rows that were kept apart, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import bitwright
from benchmarks.models import reference
from bitwright import Settings, Training
from bitwright.settings import Effort


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="", help="the quantized checkpoint, where it is there already")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--held-out", type=float, default=0.02)
    options = parser.parse_args()
    training = Training(
        method="lora",
        length=512,
        batch=4,
        max_steps=options.steps,
        learning_rate=options.learning_rate,
        held_out=options.held_out,
    )
    source = reference("smollm2")
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), {}
        quantized = Path(options.model or folder / "model")
        if not options.model:
            bitwright.quantize(source, quantized, settings=Settings(effort=Effort.QUICK, compare=False))
        for part, model in (("16 bit", source), ("ours", quantized)):
            outcome = bitwright.finetune(model, options.data, folder / f"adapter-{part[0]}", training=training)
            found[part] = outcome.after.loss
            line = {"before": round(outcome.before.loss, 4), "after": round(outcome.after.loss, 4)}
            print(json.dumps({"part": part} | line | {"steps": outcome.steps, "seconds": outcome.seconds}), flush=True)
    print(json.dumps({"loss_ratio": round(found["ours"] / found["16 bit"], 4)}))


if __name__ == "__main__":
    main()
