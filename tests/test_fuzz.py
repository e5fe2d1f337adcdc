"""A short attack with a fixed seed: every reader answers, with a result or with an error of ours."""

import os
import subprocess
import sys

SEEDS = 300


def test_no_mutant_gets_anything_but_an_answer() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--count", str(SEEDS), "--seconds", "600"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"failures": []' in done.stdout
