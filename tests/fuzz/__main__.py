"""python -m tests.fuzz [--seconds 60] [--seed 0] [--only NAME ...] — attack every reader and count what is not an answer.

An answer is a result, or a BitwrightError. Anything else is a failure, and so is a reader that takes more than SLOW seconds or
more than MEMORY bytes; each is printed once, with the seed that makes it again: --seed N --count 1. The corpus goes first.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from bitwright.errors import BitwrightError
from tests.fuzz.targets import Target, targets

SLOW = 5  # seconds
MEMORY = 2 * 2**30
CORPUS = Path(__file__).parent / "corpus"  # what was found, and its like: target / name / files


class TooSlowError(Exception):
    """A reader that has not answered in time."""


def _stop(_: int, __: FrameType | None) -> None:
    raise TooSlowError


def attack(target: Target, files: dict[str, bytes], folder: Path) -> str | None:
    """``files`` in ``folder``, made anew, before every reader of ``target``; what went wrong, in one line."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for read in target.read:
        signal.setitimer(signal.ITIMER_REAL, SLOW)
        try:
            read(folder)
        except BitwrightError:
            pass
        except TooSlowError:
            return "too slow"
        except BaseException as error:  # noqa: BLE001 - this is what is looked for
            last = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:80]}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def kept(chosen: list[Target]) -> Iterator[tuple[Target, str, dict[str, bytes]]]:
    """The corpus: target, name, files."""
    for target in chosen:
        for entry in sorted((CORPUS / target.name).glob("*")):
            yield target, entry.name, {path.name: path.read_bytes() for path in entry.iterdir()}


def run(seconds: float, seed: int, count: int | None, only: list[str]) -> dict[str, object]:
    """Attack in turn until time or ``count`` is spent; the figures."""
    signal.signal(signal.SIGALRM, _stop)
    warnings.simplefilter("ignore")
    logging.disable()  # what libraries say of every mutant
    chosen = [target for target in targets() if not only or target.name in only]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY + 6 * 2**30, resource.RLIM_INFINITY))  # libraries map a lot
    done, failures = Counter[str](), {}
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        for target, name, files in kept(chosen):
            if wrong := attack(target, files, Path(scratch) / target.name):
                failures[name] = f"{target.name} {name}: {wrong}"
                print(failures[name], file=sys.stderr, flush=True)
        while time.monotonic() < end and (count is None or sum(done.values()) < count * len(chosen)):
            for target in chosen:
                wrong = attack(target, target.make(random.Random(f"{target.name} {seed}")), Path(scratch) / target.name)
                done[target.name] += 1
                if wrong and (key := f"{target.name}: {wrong.split(':')[0]} {wrong.partition(' at ')[2][:40]}") not in failures:
                    failures[key] = f"{target.name} --seed {seed}: {wrong}"
                    print(failures[key], file=sys.stderr, flush=True)
            seed += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"mutants": sum(done.values()), "by_target": dict(done), "failures": list(failures.values()), "grown_bytes": grown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="of mutants of each kind")
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    figures = run(options.seconds, options.seed, options.count, options.only)
    print(json.dumps(figures, indent=1))
    sys.exit(1 if figures["failures"] or int(str(figures["grown_bytes"])) > MEMORY else 0)


if __name__ == "__main__":
    main()
