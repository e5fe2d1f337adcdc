"""python -m benchmarks.vision PART — models that see.

``trained``: the demo model that sees against stock NF4 and against hand-made lists of what stays in 16 bit; how true its
predictions are, and whether it looks. ``single``: only how true the predictions for single weights are. ``memory``: peak memory
on the shapes of Qwen2-VL-2B. ``cost``: the forward sweep over questions about pictures and over texts of as many tokens, in
turn, and the ratio of their medians.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.vision import shapes, trained
from bitwright import Settings

PARTS = {"trained": trained.figures, "single": trained.single, "memory": shapes.memory, "cost": shapes.cost}
OF_TRAINED = ("trained", "single")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    of_shapes = parser.add_argument_group("memory, cost")
    of_shapes.add_argument("--text-blocks", type=int, default=shapes.TEXT["num_hidden_layers"])
    of_shapes.add_argument("--vision-blocks", type=int, default=shapes.VISION["depth"])
    of_shapes.add_argument("--measured", type=int, default=2)
    of_shapes.add_argument("--repeats", type=int, default=3)
    of_shapes.add_argument("--dtype", default="auto", help="cost: of what computes")
    of_trained = parser.add_argument_group(", ".join(OF_TRAINED))
    of_trained.add_argument("--model", default="demo-vision")
    of_trained.add_argument("--weights", type=int, default=72, help="single weights whose true divergence is measured")
    of_trained.add_argument("--pictures", type=int, default=24, help="for the true divergence of each single weight")
    of_trained.add_argument("--questions", type=int, default=150, help="of each task")
    of_trained.add_argument("--workdir", type=Path, help="keep what was measured, and go on from it")
    parser.add_argument("--sequences", type=int, help="of calibration; memory: 12")
    options = parser.parse_args()
    usual = Settings().sequences if options.part in OF_TRAINED else shapes.SEQUENCES
    options.sequences = options.sequences or usual
    print(json.dumps(PARTS[options.part](options), indent=1))


if __name__ == "__main__":
    main()
