"""A weight's job: the same anywhere, figures by kind of text, and a fold that shapes the codes where tokens are short."""

from __future__ import annotations

import pickle
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bitwright import Settings
from bitwright.checkpoint.workdir import WorkDir
from bitwright.data.folds import fold
from bitwright.data.samples import Sample
from bitwright.formats.families import unpacked
from bitwright.formats.group.codes import GroupCodes
from bitwright.host.progress import Reporter
from bitwright.measure import scores
from bitwright.measure.collected import BlockMoments
from bitwright.measure.curvature import blend_into
from bitwright.measure.scores import WeightJob, rounder_of, score, spread
from bitwright.measure.subject import Subject
from bitwright.measure.sweep import Sweep
from bitwright.measure.traffic import Traffic
from bitwright.rounding.group import GroupRounder
from bitwright.rounding.kernels import error_feedback
from tests.conftest import Build

ELSEWHERE = """
import pickle, sys
from bitwright.measure.scores import score
with open(sys.argv[1], "rb") as jobs, open(sys.argv[2], "wb") as out:
    pickle.dump([score(job) for job in pickle.load(jobs)], out)
"""


def jobs_of(source: Path, work: Path, copies: int = 1) -> list[WeightJob]:
    """The jobs of the last block on two kinds of random text."""
    subject = Subject.open(source, Settings(container="compressed-tensors", device="cpu", dtype="float32"))
    generator = torch.Generator().manual_seed(0)
    lengths = (24, 9, 24, 17, 24, 24, 30, 24, 24, 24, 12, 24, 24, 24, 24, 24) * copies
    samples = [Sample.of(torch.randint(3, 500, (length,), generator=generator)) for length in lengths]
    folds = fold({"odd": samples[1::2], "even": samples[::2]}, 0)
    sweep = Sweep(subject, folds, WorkDir(work, "key"), Reporter(quiet=True))
    sweep.prepare()
    return [job for job, _ in sweep.jobs(sweep.unfinished()[0])]


def test_a_job_gives_the_same_elsewhere(build: Build, tmp_path: Path) -> None:
    jobs = jobs_of(build("llama"), tmp_path)
    (tmp_path / "jobs").write_bytes(pickle.dumps(jobs))
    here = [score(job) for job in jobs]
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(tmp_path / "jobs"), str(tmp_path / "found")], check=True)
    there = pickle.loads((tmp_path / "found").read_bytes())
    assert [scored.scores for scored in there] == [scored.scores for scored in here]
    for a, b in zip(here, there, strict=True):
        for ours, theirs in zip(a.codes, b.codes, strict=True):
            assert ours.format == theirs.format
            assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)


def test_damages_are_known_by_kind_of_text(build: Build, tmp_path: Path) -> None:
    job = jobs_of(build("llama"), tmp_path, copies=2)[0]
    assert set(job.kinds) == {"odd", "even"}
    assert len(job.kinds) == len(job.n_tokens) - job.n_choosing
    by_kind = [torch.tensor([kind == own for own in job.kinds]) for kind in dict.fromkeys(job.kinds)]
    tokens = job.n_tokens[job.n_choosing :]
    for found in score(job).scores.formats:
        parts = [nats * int(tokens[kind].sum()) for nats, kind in zip(found.check_by_kind, by_kind, strict=True)]
        assert sum(parts) == pytest.approx(found.check_nats * int(tokens.sum()), rel=1e-6)


@pytest.mark.parametrize("index", [0, 2])
def test_where_tokens_are_short_the_choosing_fold_shapes_the_codes_too(
    index: int, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures are those of the first codes; what is kept has seen the choosing fold, and not the predicting one."""
    short = jobs_of(build("llama"), tmp_path / "short")[index]
    rows = jobs_of(build("llama"), tmp_path / "rows")[index].row_feedback()
    assert (rows is not None) == bool(index), "one is swept over, and one rounded anew"
    assert short.is_short
    twice = score(short)
    with monkeypatch.context() as patched:
        patched.setattr(scores, "SHORT", 0)
        again = jobs_of(build("llama"), tmp_path / "again")[index]
        assert not again.is_short
        once = score(again)
    assert twice.scores == once.scores
    chooses = short.traffic.sample < short.n_choosing
    x = short.traffic.x[chooses]
    for first, last in zip(once.codes, twice.codes, strict=True):
        decoded = [
            rounder_of(p.format, short.rounders).codes.from_tensors(p.format, p.shape, p.tensors).decode()
            for p in (first, last)
        ]
        errors = [(one - short.value) @ x.t() for one in decoded]
        assert float(errors[1].square().sum()) < float(errors[0].square().sum()), first.format.name
    other = replace(short.traffic, x=torch.where(chooses[:, None], short.traffic.x, torch.randn_like(short.traffic.x)))
    changed = score(replace(jobs_of(build("llama"), tmp_path / "changed")[index], traffic=other))
    assert changed.scores != twice.scores
    for first, last in zip(changed.codes, twice.codes, strict=True):
        assert all(torch.equal(first.tensors[name], last.tensors[name]) for name in first.tensors), "predicting tokens seen"


def test_folds_are_blended_alike(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's moment is that of both folds by their tokens, each blended of plain and weighted ones, damped once."""
    job = jobs_of(build("llama"), tmp_path)[0]
    chooses = job.traffic.sample < job.n_choosing
    x, g = job.traffic.x.double(), job.traffic.g.double()
    x[::5] *= 30  # tokens with large inputs that hardly matter, as the first of a text
    g[::5] *= 0.01
    job = replace(job, traffic=replace(job.traffic, x=x.float(), g=g.float()))
    assert job.moments.plain is not None
    assert job.moments.weighted is not None
    rounds = blend_into(job.moments.weighted.double(), job.moments.plain.double(), job.plain_share)
    plain = x[chooses].t() @ x[chooses]
    weighted = (x[chooses] * g[chooses].square().sum(1, keepdim=True)).t() @ x[chooses]
    share = job.moments.n_tokens / (job.moments.n_tokens + int(chooses.sum()))
    wanted = share * rounds + (1 - share) * blend_into(weighted, plain, job.plain_share)
    seen: list[torch.Tensor] = []

    def noted(self: GroupRounder, weight: torch.Tensor, codes: GroupCodes, moment: torch.Tensor) -> GroupCodes:
        seen.append(moment.clone())
        return codes

    monkeypatch.setattr(GroupRounder, "descended", noted)
    damping = score(job).scores.damping
    assert len(seen) == len(job.formats)
    for moment in seen:
        torch.testing.assert_close(moment, moment.t(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(moment.double(), wanted + damping * torch.eye(len(wanted)), rtol=1e-4, atol=1e-5)


def test_a_fold_that_is_no_number_is_not_taken(build: Build, tmp_path: Path) -> None:
    job = jobs_of(build("llama"), tmp_path)[0]
    x = job.traffic.x.clone()
    at = spread((job.traffic.sample < job.n_choosing).nonzero()[:, 0])
    x[at[-1], 3] = torch.inf
    with pytest.raises(ValueError, match="infinite"):
        score(replace(job, traffic=replace(job.traffic, x=x)))


def test_moments_of_inputs_are_gone_when_the_factor_is_made(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The factor of a wide weight is the largest thing in memory, and each of the moments is as large."""
    job = jobs_of(build("llama"), tmp_path)[0]
    assert job.moments.plain is not None
    plain, inverse = weakref.ref(job.moments.plain), error_feedback.inverse_factor
    alive: list[bool] = []

    def noted(moment: torch.Tensor) -> torch.Tensor | None:
        alive.append(plain() is not None)
        return inverse(moment)

    monkeypatch.setattr(error_feedback, "inverse_factor", noted)
    score(job)
    assert alive
    assert not any(alive)


def test_output_gradients_are_summed_where_a_weight_has_not_many_more_rows_than_columns() -> None:
    torch.manual_seed(0)
    x, narrow, wide = torch.randn(40, 8), torch.randn(40, 16), torch.randn(40, 17)
    moments, sample = BlockMoments(), torch.zeros(40, dtype=torch.int64)
    for part in (slice(0, 25), slice(25, 40)):
        shared = x[part]
        moments.add({name: Traffic(shared, g[part], sample[part]) for name, g in (("narrow", narrow), ("wide", wide))})
    *_, outputs = moments.take("narrow")
    assert outputs is not None
    expected = (narrow.double() * x.double().square().sum(1, keepdim=True)).t() @ narrow.double()
    assert torch.allclose(outputs.double(), expected, rtol=1e-5, atol=1e-4)
    assert moments.take("wide")[2] is None


def test_outputs_that_matter_together_make_up_for_each_other(build: Build, tmp_path: Path) -> None:
    """Gradients of one direction: rows are rounded so that what is left of it nearly vanishes, on tokens not rounded on."""
    costs = []
    for together in (False, True):
        job = jobs_of(build("llama"), tmp_path / str(together))[0]
        n_rows = len(job.value)
        generator = torch.Generator().manual_seed(1)
        direction = torch.randn(n_rows, generator=generator)
        g = torch.randn(len(job.traffic.x), 1, generator=generator) * direction
        job = replace(job, traffic=replace(job.traffic, g=g + 0.01 * torch.randn(g.shape, generator=generator)))
        job.moments.outputs = torch.outer(direction, direction) + 1e-4 * torch.eye(n_rows) if together else None
        scored = score(job)
        predicting = job.traffic.sample >= job.n_choosing
        change = unpacked(scored.codes[0]).decode() - job.value
        felt = (job.traffic.x[predicting] @ change.t()) * job.traffic.g[predicting]
        costs.append(float(felt.sum(1).square().mean()))
    assert costs[1] < 0.3 * costs[0]
