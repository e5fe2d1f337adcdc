"""Models that see, measured block by block, give the numbers of the whole model in memory, whatever images come with a text."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from bitwright.checkpoint.workdir import WorkDir
from bitwright.data.draw import drawn_at
from bitwright.data.folds import Folds
from bitwright.data.samples import Sample
from bitwright.errors import BitwrightError
from bitwright.host.progress import Reporter
from bitwright.measure import store
from bitwright.measure.curvature import fisher_scores
from bitwright.measure.scores import WeightJob
from bitwright.measure.subject import Subject
from bitwright.measure.sweep import Sweep
from bitwright.measure.trace import Trace
from bitwright.models.spec import BlockId, Kind
from bitwright.settings import Settings
from tests.conftest import byte_tokenizer
from tests.vision import FAMILIES, Family, built

QUIET = Reporter(quiet=True)
CLOSE = 1e-5  # relative, in float32
Rows = dict[str, tuple[Tensor, Tensor]]  # weight -> inputs [M, K] and output gradients [M, N]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """written("mllama") saves the family's model once and returns its directory."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("vision") / name
            built(name).save_pretrained(made[name])
            byte_tokenizer().save_pretrained(made[name])
        return made[name]

    return of


def samples_of(family: Family) -> list[Sample]:
    """With one image, with a larger one, with several, and with none."""
    one, other = family.fixed or (4, 4), family.fixed or (4, 6)
    several = [other, one][: family.n_images]
    sizes = [[one], [other], several, [], [other], [one], [], several]
    return [family.sample(of, seed, length=20 + seed) for seed, of in enumerate(sizes)]


def swept(path: Path, folds: Folds, work: Path) -> tuple[Sweep, dict[str, WeightJob]]:
    subject = Subject.open(path, Settings(device="cpu", dtype="float32", seed=3))
    sweep = Sweep(subject, folds, WorkDir(work, "key"), QUIET)
    sweep.prepare()
    jobs = {}
    for unit in sweep.unfinished():
        jobs |= {job.name: replace(job) for job, _ in sweep.jobs(unit)}
        sweep.finished(unit)
    return sweep, jobs


def resident(model: Any, sample: Sample, generator: torch.Generator, names: list[str]) -> Rows:
    """What passes the weights ``names`` for one sample, by plain autograd through the whole model."""
    seen: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module) -> Any:
        def note(_: object, args: tuple[Tensor, ...], out: Tensor) -> None:
            seen[name] = args[0].detach().flatten(0, -2)
            out.register_hook(lambda g: gradients.__setitem__(name, g.flatten(0, -2)))

        return module.register_forward_hook(note)

    hooks = [watch(name, model.get_submodule(name.removesuffix(".weight"))) for name in names]
    first = [p for n, p in model.named_parameters() if "patch" in n or "embed" in n]
    for parameter in first:  # so that everything behind them is part of the graph
        parameter.requires_grad_(True)
    inputs = {name: tensor[None] for name, tensor in sample.inputs.items()} | sample.media
    logits = model(**inputs, use_cache=False).logits[0]
    mass = (logits.detach() - logits.detach().amax(1, keepdim=True)).exp()
    label = drawn_at(mass, torch.rand(sample.n_tokens, 1, generator=generator))[:, 0]
    nn.functional.cross_entropy(logits, label, reduction="none")[sample.scored].sum().backward()
    for hook in hooks:
        hook.remove()
    for parameter in first:
        parameter.requires_grad_(False).grad = None
    return {name: (x, gradients.get(name, x.new_zeros(0))) for name, x in seen.items()}


def expected_of(path: Path, sweep: Sweep) -> list[Rows]:
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
    names = [weight.name for weight in sweep.skeleton.spec.weights]
    generators = [torch.Generator().manual_seed(sweep.method.seed * 1_000_003 + s) for s in range(len(sweep.folds.all))]
    return [resident(model, sample, g, names) for sample, g in zip(sweep.folds.all, generators, strict=True)]


def score(rows: Rows, name: str, change: Tensor) -> Tensor:
    x, g = rows.get(name, (torch.zeros(0), torch.zeros(0)))
    return torch.zeros((), dtype=torch.float64) if not g.numel() else ((g.double() @ change.double()) * x).sum()


def gradients_off(sweep: Sweep, jobs: dict[str, WeightJob], expected: list[Rows]) -> float:
    """The largest relative difference between the gradients at a weight's outputs over the scoring folds."""
    worst = 0.0
    for name, job in jobs.items():
        for s, rows in enumerate(expected[len(sweep.folds.rounding) :]):
            found, (_, wanted) = job.traffic.g[job.traffic.sample == s], rows.get(name, (None, torch.zeros(0)))
            if wanted.norm() > 0:
                worst = max(worst, float((found - wanted).norm() / wanted.norm()))
            else:
                assert not found.any()
    return worst


def differences(sweep: Sweep, jobs: dict[str, WeightJob], expected: list[Rows]) -> dict[str, float]:
    """Weight -> the largest relative difference of its scores, sums of either sign, and of its weighted second moment."""
    n = len(sweep.folds.rounding)
    found = {}
    for name, job in jobs.items():
        change = torch.randn(job.value.shape, generator=torch.Generator().manual_seed(1))
        wanted = torch.stack([score(rows, name, change) for rows in expected[n:]])
        scores = fisher_scores([change], job.traffic, len(job.n_tokens))[0]
        parts = [rows[name] for rows in expected[:n] if name in rows and rows[name][1].numel()]
        moment = sum((x.double() * g.double().square().sum(-1, keepdim=True)).t() @ x.double() for x, g in parts)
        off = [float((scores - wanted).norm() / wanted.norm().clamp(min=1e-30))]
        assert job.moments.weighted is not None
        if parts:
            off.append(float((job.moments.weighted - moment).norm() / moment.norm().clamp(min=1e-30)))
        found[name] = max(off) if bool(wanted.any()) else float(scores.abs().max())
    return found


def folds_of(samples: list[Sample]) -> Folds:
    return Folds(tuple(samples[:4]), tuple(samples[4:6]), tuple(samples[6:]), "random")


@pytest.mark.parametrize("name", FAMILIES)
def test_streamed_equals_resident(written: Any, tmp_path: Path, name: str) -> None:
    path, samples = written(name), samples_of(FAMILIES[name])
    sweep, jobs = swept(path, folds_of(samples), tmp_path / "a")
    expected = expected_of(path, sweep)
    assert gradients_off(sweep, jobs, expected) < 1e-6
    off = differences(sweep, jobs, expected)
    assert max(off.values()) < CLOSE, {weight: value for weight, value in off.items() if value >= CLOSE}
    spec = sweep.skeleton.spec
    assert {stack.name.partition("-")[0] for stack in spec.stacks} == {"vision", "text"}
    without = {weight.name for weight in spec.weights if weight.kind == Kind.LINEAR} - set(jobs)
    assert all(".head." in weight for weight in without), without  # of SigLIP, which the model never calls
    assert sum(float(str(row["share"])) for row in spec.coverage()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "path"), [("qwen3_vl", "deepstack"), ("mllama", "cross-attention"), ("mllama", "taps"), ("llava_clip", "taps")]
)
def test_leaving_out_a_path_is_seen(
    written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, path: str
) -> None:
    """The comparison above notices when one of the ways of a gradient is missing."""
    if path == "deepstack":
        monkeypatch.setattr(Trace, "is_fresh", lambda *_: False)
    elif path == "cross-attention":
        monkeypatch.setattr(Trace, "differentiable", lambda *_: {})
    else:
        whole = Trace.glue

        def last_only(self: Trace, *args: Any, **kwargs: Any) -> dict[BlockId, Tensor]:
            found = whole(self, *args, **kwargs)
            ends = {stack.name: stack.n_blocks - 1 for stack in self.skeleton.spec.stacks}
            return {at: g for at, g in found.items() if at.index == ends[at.stack]}

        monkeypatch.setattr(Trace, "glue", last_only)
    source, samples = written(name), samples_of(FAMILIES[name])
    if path == "cross-attention":  # then no gradient reaches what reads the images
        with pytest.raises(BitwrightError, match="model/unused-weight"):
            swept(source, folds_of(samples), tmp_path)
        return
    sweep, jobs = swept(source, folds_of(samples), tmp_path)
    assert max(differences(sweep, jobs, expected_of(source, sweep)).values()) > 1e-2


@pytest.mark.parametrize("name", ["qwen3_vl", "mllama", "mistral3"])
def test_another_order_of_the_samples_changes_nothing(written: Any, tmp_path: Path, name: str) -> None:
    path, samples = written(name), samples_of(FAMILIES[name])
    _, jobs = swept(path, Folds(tuple(samples[:4]), tuple(samples[4:6]), tuple(samples[6:]), "random"), tmp_path / "a")
    moved = Folds(tuple(samples[3::-1]), tuple(samples[4:6]), tuple(samples[6:]), "random")
    _, others = swept(path, moved, tmp_path / "b")
    assert set(jobs) == set(others)
    for weight, job in jobs.items():
        one, other = job.moments.plain, others[weight].moments.plain
        assert float((one - other).norm() / one.norm()) < CLOSE, weight


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_answers_as_before(written: Any, tmp_path: Path, name: str) -> None:
    path, samples = written(name), samples_of(FAMILIES[name])
    subject = Subject.open(path, Settings(device="cpu", dtype="float32", seed=3))
    sweep = Sweep(subject, folds_of(samples), WorkDir(tmp_path, "key"), QUIET)
    before = {id(m): {k: v for k, v in vars(m).items() if not k.startswith("_")} for m in subject.skeleton.model.modules()}
    sweep.prepare()
    for unit in sweep.unfinished():
        list(sweep.jobs(unit))
        sweep.finished(unit)
    for module in subject.skeleton.model.modules():
        after = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        assert after.keys() == before[id(module)].keys()
        assert all(after[k] is v for k, v in before[id(module)].items())
    assert all(parameter.is_meta for parameter in subject.skeleton.model.parameters())
    wanted = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    with ExitStack() as stack, torch.no_grad():
        subject.skeleton.fill_rest(torch.device("cpu"), torch.float32)
        stack.callback(subject.skeleton.release_rest)
        for block in subject.skeleton.spec.blocks():
            stack.enter_context(subject.skeleton.filled(block, torch.device("cpu"), torch.float32))
        for sample in samples:
            inputs = {name: tensor[None] for name, tensor in sample.inputs.items()} | sample.media
            assert torch.equal(subject.skeleton.model(**inputs).logits, wanted(**inputs).logits)


def test_a_killed_measurement_goes_on_at_the_same_numbers(written: Any, tmp_path: Path) -> None:
    """Between any two units: everything that the later ones need lies in the work directory."""
    for name in ("mllama", "qwen3_vl"):
        path, folds = written(name), folds_of(samples_of(FAMILIES[name]))
        _, jobs = swept(path, folds, tmp_path / name / "whole")
        found: dict[str, WeightJob] = {}
        work = WorkDir(tmp_path / name / "pieces", "key")
        while True:  # a new process for every unit
            sweep = Sweep(Subject.open(path, Settings(device="cpu", dtype="float32", seed=3)), folds, work, QUIET)
            sweep.prepare()
            left = sweep.unfinished()
            if not left:
                break
            found |= {job.name: replace(job) for job, _ in sweep.jobs(left[0])}
            store.save_block(work, left[0], [], {}, {})
            sweep.finished(left[0])
        assert set(found) == set(jobs)
        for weight, job in jobs.items():
            assert torch.equal(job.moments.plain, found[weight].moments.plain), weight
            assert torch.equal(job.traffic.g, found[weight].traffic.g), weight
