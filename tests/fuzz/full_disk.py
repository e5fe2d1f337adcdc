"""python -m tests.fuzz.full_disk [--times 50] — fill the disk under a run, make space, let it go on, compare bytes.

As root, on Linux: the run works on a small file system in memory (pages of 4 KiB) whose size is drawn between nothing and what
an undisturbed run takes at most. The run must end with an error in words that names the disk and leave nothing half-written at
OUT; on the same file system with room, the same command must write the same bytes as an undisturbed run. The room that is asked
for beforehand is taken away for this.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bitwright.checkpoint.output as output
from tests.fuzz.runs import SUFFIX, Run, digest, start, tiny_model

ROOM = 2**30
NAMES_THE_DISK = ("output/write", "output/disk", "output/read-only", "system/refused")


@contextmanager
def small_disk(place: Path, nbytes: int) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={max(nbytes, 4096)}", "bitwright-test", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        place.rmdir()


def resize(place: Path, nbytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={nbytes}", str(place)], check=True)


def used(place: Path) -> int:
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def peak_of(run: Run, place: Path) -> int:
    """The most bytes that ``run`` took of the file system."""
    peak = 0
    while run.wait(0.01) is None:
        peak = max(peak, used(place))
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    output.MARGIN_BYTES = 0
    chance, wrong, ends = random.Random(options.seed), [], Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        source, log = tiny_model(scratch / "source"), scratch / "log.txt"
        expected, peak = {}, {}
        for container, suffix in SUFFIX.items():
            with small_disk(scratch / "disk", ROOM) as disk:
                os.environ["TMPDIR"] = str(disk)
                (disk / "results").mkdir()
                run = start(source, disk / "results" / f"out{suffix}", container, log)
                peak[container] = peak_of(run, disk)
                assert run.code == 0, log.read_text()
                expected[container] = digest(disk / "results")
        for i in range(options.times):
            container = list(SUFFIX)[i % len(SUFFIX)]
            size = chance.randrange(peak[container])
            with small_disk(scratch / "disk", size) as disk:
                log.unlink()
                (disk / "results").mkdir()
                out = disk / "results" / f"out{SUFFIX[container]}"
                first = start(source, out, container, log).wait()
                said = next((word for word in NAMES_THE_DISK if word in log.read_text()), "")
                ends[said or f"exit code {first}"] += 1
                if not (first == 0 or (first == 2 and said)) or (first and out.exists()):
                    wrong.append(f"{container}, {size} bytes: exit code {first}, {log.read_text()[-300:]}")
                    print(wrong[-1], file=sys.stderr, flush=True)
                resize(disk, ROOM)
                second = 0 if first == 0 else start(source, out, container, log).wait()
                if second or digest(disk / "results") != expected[container]:
                    names = sorted(p.name for p in (disk / "results").iterdir())
                    wrong.append(f"{container}, {size} bytes, again: exit code {second}, {names}, {log.read_text()[-300:]}")
                    print(wrong[-1], file=sys.stderr, flush=True)
                left = [p.name for p in disk.iterdir() if p.name != "results"]
                if left:
                    ends[f"left behind: {left}"[:60]] += 1
                shutil.rmtree(disk / "results")
    print(json.dumps({"times": options.times, "peak_bytes": peak, "ends": ends, "other_bytes": wrong}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
