"""The costs of a stage are those of that stage."""

import subprocess
import sys
import time

from bitwright.host.clock import RESET, Clock

MIB = 1024**2


def test_the_peak_of_a_stage_does_not_count_what_an_earlier_one_held():
    clock = Clock()
    held = b"x" * (200 * MIB)
    del held
    clock.lap("large")
    clock.lap("small")
    large, small = clock.stages["large"].peak_nbytes, clock.stages["small"].peak_nbytes
    assert large - small > 150 * MIB if RESET.exists() else large <= small


def test_processor_time_counts_children_and_not_waiting():
    clock = Clock()
    time.sleep(0.3)
    clock.lap("waiting")
    subprocess.run([sys.executable, "-c", "sum(i * i for i in range(3_000_000))"], check=True)
    clock.lap("child")
    assert clock.stages["waiting"].seconds >= 0.3
    assert clock.stages["waiting"].processor_seconds < 0.2
    assert clock.stages["child"].processor_seconds > 0.05
