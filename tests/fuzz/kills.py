"""python -m tests.fuzz.kills [--kills 200] [--containers ...] — kill a run at random moments, let it go on, compare bytes.

A tiny model is quantized into every container once without disturbance. Then again and again: each run is killed with SIGKILL,
the process alone or its whole group in turn, at random moments, until it comes to its end; what it wrote must be the same to
the last byte, and nothing else may lie beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.runs import SUFFIX, digest, start, tiny_model

KILLS_A_RUN = 6  # then it is let go on to its end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--containers", nargs="*", default=list(SUFFIX))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, kills, runs, wrong = random.Random(options.seed), 0, 0, []
    with tempfile.TemporaryDirectory() as scratch:
        source, log = tiny_model(Path(scratch) / "source"), Path(scratch) / "log.txt"
        expected, seconds = {}, {}
        for container in options.containers:
            folder, began = Path(scratch) / f"whole-{container}", time.monotonic()
            folder.mkdir()
            assert start(source, folder / f"out{SUFFIX[container]}", container, log).wait() == 0, log.read_text()
            expected[container], seconds[container] = digest(folder), time.monotonic() - began
        while kills < options.kills:
            container = options.containers[runs % len(options.containers)]
            folder = Path(scratch) / f"killed-{runs}"
            folder.mkdir()
            log.unlink()
            for _ in range(KILLS_A_RUN):
                run = start(source, folder / f"out{SUFFIX[container]}", container, log)
                if run.wait(chance.uniform(0, seconds[container])) is not None:
                    break  # it came to its end
                run.kill(group=bool(kills % 2))
                kills += 1
            else:
                run = start(source, folder / f"out{SUFFIX[container]}", container, log)
            code = run.wait()
            runs += 1
            if code or digest(folder) != expected[container]:
                last = log.read_text().strip().splitlines()[-1:]
                wrong.append(f"{container}, run {runs}, exit code {code}: {sorted(p.name for p in folder.iterdir())} {last}")
                print(wrong[-1], file=sys.stderr, flush=True)
            shutil.rmtree(folder)
    print(json.dumps({"kills": kills, "runs": runs, "seconds": seconds, "other_bytes": wrong}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
