"""python -m tests.fuzz.kills [--kills 200] [--jobs ...] — kill a run at random moments, let it go on, compare bytes.

A tiny model is quantized into every container once without disturbance, an adapter is trained beside one, and one is repaired.
Then again and again: each run is killed with SIGKILL, the process alone or its whole group in turn, at random moments, until it
comes to its end; what it wrote must be the same to the last byte, and nothing else may lie beside it. Only a run that was
killed after its result was in place leaves its hidden folder: the next one says that the result is there.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.fuzz.runs import SUFFIX, digest, finetune, quantize, repair, start_job, tiny_model

KILLS_A_RUN = 6  # then it is let go on to its end
FINETUNE, REPAIR = "finetune", "repair"


Job = Callable[[Path], None]  # in a folder of its own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--jobs", nargs="*", default=[*SUFFIX, FINETUNE, REPAIR])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, kills, runs, wrong = random.Random(options.seed), 0, 0, []
    with tempfile.TemporaryDirectory() as scratch:
        source, log = tiny_model(Path(scratch) / "source"), Path(scratch) / "log.txt"
        model = Path(scratch) / "model" / "out"
        model.parent.mkdir()
        assert start_job(partial(quantize, source, model, "bitsandbytes"), log).wait() == 0, log.read_text()
        known = jobs(source, model, Path(scratch))
        expected, seconds = {}, {}
        for name in options.jobs:
            folder, began = new_folder(Path(scratch) / f"whole-{name}", name, model), time.monotonic()
            assert start_job(partial(known[name], folder), log).wait() == 0, log.read_text()
            expected[name], seconds[name] = digest(folder), time.monotonic() - began
        while kills < options.kills:
            name = options.jobs[runs % len(options.jobs)]
            folder = new_folder(Path(scratch) / f"killed-{runs}", name, model)
            log.unlink()
            for _ in range(KILLS_A_RUN):
                run = start_job(partial(known[name], folder), log)
                if run.wait(chance.uniform(0, seconds[name])) is not None:
                    break  # it came to its end
                run.kill(group=bool(kills % 2))
                kills += 1
            else:
                run = start_job(partial(known[name], folder), log)
            code = run.wait()
            runs += 1
            was_done = code == 2 and "already there" in log.read_text()  # killed between its last two steps
            if digest(folder, hidden=not was_done) != expected[name] or (code and not was_done):
                last = log.read_text().strip().splitlines()[-1:]
                wrong.append(f"{name}, run {runs}, exit code {code}: {sorted(p.name for p in folder.iterdir())} {last}")
                print(wrong[-1], file=sys.stderr, flush=True)
            shutil.rmtree(folder)
    print(json.dumps({"kills": kills, "runs": runs, "seconds": seconds, "other_bytes": wrong}))
    sys.exit(1 if wrong else 0)


def jobs(source: Path, model: Path, scratch: Path) -> dict[str, Job]:
    """What is killed, by name."""
    data = scratch / "sums.csv"
    data.write_text("question,answer\n" + "\n".join(f"What is {i} + 1?,It is {i + 1}." for i in range(40)), encoding="utf-8")
    found: dict[str, Job] = {container: partial(_into, source, container) for container in SUFFIX}
    found[FINETUNE] = lambda folder: finetune(model, data, folder / "out")
    found[REPAIR] = lambda folder: repair(folder / "out", source)
    return found


def _into(source: Path, container: str, folder: Path) -> None:
    quantize(source, folder / f"out{SUFFIX[container]}", container)


def new_folder(folder: Path, name: str, model: Path) -> Path:
    """Where a job works; a repair finds a copy of the ``model`` there."""
    folder.mkdir()
    if name == REPAIR:
        shutil.copytree(model, folder / "out")
    return folder


if __name__ == "__main__":
    main()
