"""A weight's job can go anywhere: pickled, it gives the same codes and figures in another process."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import torch

from bitwright import Settings
from bitwright.checkpoint.workdir import WorkDir
from bitwright.data.folds import fold
from bitwright.data.samples import Sample
from bitwright.host.progress import Reporter
from bitwright.measure.scores import score
from bitwright.measure.subject import Subject
from bitwright.measure.sweep import Sweep
from tests.conftest import Build

ELSEWHERE = """
import pickle, sys
from bitwright.measure.scores import score
with open(sys.argv[1], "rb") as jobs, open(sys.argv[2], "wb") as out:
    pickle.dump([score(job) for job in pickle.load(jobs)], out)
"""


def test_a_job_gives_the_same_elsewhere(build: Build, tmp_path: Path) -> None:
    subject = Subject.open(build("llama"), Settings(container="compressed-tensors", dtype="float32"))
    generator = torch.Generator().manual_seed(0)
    samples = [Sample.of(torch.randint(3, 500, (length,), generator=generator)) for length in (24, 9, 24, 17, 24, 24, 30, 24)]
    quiet = Reporter(quiet=True)
    sweep = Sweep(subject, fold({"random": samples}, 0), WorkDir(tmp_path, "key"), quiet)
    sweep.prepare()
    jobs = [job for job, _ in sweep.jobs(sweep.unfinished()[0])]
    (tmp_path / "jobs").write_bytes(pickle.dumps(jobs))
    here = [score(job) for job in jobs]
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(tmp_path / "jobs"), str(tmp_path / "found")], check=True)
    there = pickle.loads((tmp_path / "found").read_bytes())
    assert [scored.scores for scored in there] == [scored.scores for scored in here]
    for a, b in zip(here, there, strict=True):
        for ours, theirs in zip(a.codes, b.codes, strict=True):
            assert ours.format == theirs.format
            assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)
