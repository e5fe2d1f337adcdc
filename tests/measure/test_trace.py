"""Measuring block by block gives the numbers of the whole model in memory, whatever the texts are."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.checkpoint.workdir import WorkDir
from bitwright.data.folds import Folds
from bitwright.data.samples import Batch, Sample, batches
from bitwright.host.progress import Reporter
from bitwright.measure.curvature import fisher_scores
from bitwright.measure.head import Head
from bitwright.measure.scores import WeightJob
from bitwright.measure.subject import Subject
from bitwright.measure.sweep import Sweep
from bitwright.measure.trace import Trace, backward_through
from bitwright.measure.traffic import Traffic
from bitwright.models.open import open_model
from bitwright.models.skeleton import Skeleton
from bitwright.models.spec import BlockId, Kind
from bitwright.models.taps.linear import LinearTap
from bitwright.settings import Settings
from tests.conftest import ARCHITECTURES, Build
from tests.measure.streamed import boundaries

SEQUENCES, TOKENS = 3, 40
LENGTHS = (2, 7, 40, 23, 40)
CPU, WIDE = torch.device("cpu"), torch.float32
QUIET = Reporter(quiet=True)


def random_ids(*lengths: int, seed: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 500, (length,), generator=generator) for length in lengths]


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=WIDE).eval().requires_grad_(False)


def resident(
    model: Any, ids: Tensor, generators: list[torch.Generator], scored: Tensor | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Inputs, output gradients and logits of the whole model at once, by plain autograd."""
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and "lm_head" not in name:

            def note(_: object, args: tuple[Tensor, ...], out: Tensor, key: str = name + ".weight") -> None:
                inputs[key] = args[0].detach()
                out.register_hook(lambda g: gradients.__setitem__(key, g.detach()))

            hooks.append(module.register_forward_hook(note))
    embeddings = model.get_input_embeddings()(ids).requires_grad_(True)
    logits = model(inputs_embeds=embeddings, use_cache=False).logits
    loss = torch.zeros(())
    for row, generator in zip(logits, generators, strict=True):
        draw = torch.rand(len(row), 1, generator=generator)
        cumulative = row.detach().softmax(-1).cumsum(-1)
        y = torch.searchsorted(cumulative, draw * cumulative[:, -1:]).squeeze(1).clamp_(max=row.shape[1] - 1)
        each = torch.nn.functional.cross_entropy(row, y, reduction="none")
        loss = loss + (each if scored is None else each[scored]).sum()
    loss.backward()
    for hook in hooks:
        hook.remove()
    return inputs, gradients, logits.detach()


def in_turn(trace: Trace, batch: Batch) -> list[Tensor]:
    """The hidden states before, between and behind the blocks of a text model."""
    return list(boundaries(trace, batch).values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_streamed_equals_resident(build: Build, architecture: str) -> None:
    path = build(architecture)
    samples = [Sample.of(ids) for ids in random_ids(*[TOKENS] * SEQUENCES)]
    skeleton = open_model(Checkpoint.of_directory(path))
    trace = Trace(skeleton, CPU, WIDE)
    (batch,) = batches(samples, SEQUENCES * TOKENS)
    hidden = in_turn(trace, batch)
    expected_inputs, expected_gradients, expected_logits = resident(
        load(path), batch.inputs["input_ids"], [torch.Generator().manual_seed(s) for s in range(SEQUENCES)]
    )
    parts = [part for _, part in Head(trace).logits(samples[0], hidden[-1][:1])]
    assert torch.allclose(torch.cat(parts).detach(), expected_logits[0], rtol=1e-4, atol=1e-4)
    gradient = torch.cat(
        [
            Head(trace).sampled_score_gradient(samples[s], hidden[-1][s : s + 1], torch.Generator().manual_seed(s))[0]
            for s in range(SEQUENCES)
        ]
    )
    skeleton.release_rest()
    numbers = torch.arange(SEQUENCES)
    for block in reversed(skeleton.spec.blocks()):
        weights = skeleton.spec.weights_at(block)
        assert weights
        with skeleton.filled(block, CPU, WIDE) as module:
            taps = [LinearTap(w, skeleton.model.get_submodule(w.module)) for w in weights]
            call = trace.call(block, batch)
            gradient, _, traffic = backward_through(module, call, hidden[block.index], gradient, taps, numbers)
        for weight in weights:
            change = [torch.randn(weight.n_rows, weight.n_cols, generator=torch.Generator().manual_seed(1))]
            whole = (expected_inputs[weight.name].flatten(0, 1), expected_gradients[weight.name].flatten(0, 1))
            scores = fisher_scores(change, traffic[weight.name], SEQUENCES)
            expected = fisher_scores(change, Traffic(*whole, numbers.repeat_interleave(TOKENS)), SEQUENCES)
            assert torch.allclose(scores, expected, rtol=0, atol=2e-5 * float(expected.abs().max())), weight.name
    assert all(parameter.is_meta for parameter in skeleton.model.parameters()), "no weight stays resident"


def test_only_one_block_is_resident(build: Build) -> None:
    skeleton = open_model(Checkpoint.of_directory(build("llama")))
    first, second = skeleton.spec.blocks()
    with skeleton.filled(second, CPU, WIDE) as block:
        assert not any(p.is_meta for p in block.parameters())
        assert all(p.is_meta for p in skeleton.module(first).parameters())
    assert all(p.is_meta for p in skeleton.module(second).parameters())


def sweep_of(path: Path, folds: Folds, work: Path, batch_tokens: int = 2048) -> Sweep:
    subject = Subject.open(path, Settings(device="cpu", dtype="float32", seed=3))
    subject = replace(subject, method=replace(subject.method, batch_tokens=batch_tokens))
    return Sweep(subject, folds, WorkDir(work, "key"), QUIET)


def swept(sweep: Sweep) -> Iterator[tuple[WeightJob, Tensor]]:
    """Every job of the model with the mean square of its inputs."""
    sweep.prepare()
    for block in sweep.unfinished():
        yield from sweep.jobs(block)
        sweep.finished(block)


def text_by_text(path: Path, sweep: Sweep) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Inputs [T, K] and output gradients [T, N] of each sample alone, in the order of the folds."""
    model, found = load(path), []
    for s, sample in enumerate(sweep.folds.all):
        generator = torch.Generator().manual_seed(sweep.method.seed * 1_000_003 + s)
        inputs, gradients, _ = resident(model, sample.ids[None], [generator], sample.scored)
        found.append(({name: x[0] for name, x in inputs.items()}, {name: g[0] for name, g in gradients.items()}))
    return found


def require_equal(sweep: Sweep, path: Path) -> None:
    """Fisher scores and second moments of every weight are those of plain autograd, text by text."""
    folds, weights = sweep.folds, {w.name: w for w in sweep.skeleton.spec.weights}
    expected = text_by_text(path, sweep)
    rounding, scoring = expected[: len(folds.rounding)], expected[len(folds.rounding) :]
    seen = set()
    for job, mean_square in swept(sweep):
        seen.add(job.name)
        weight = weights[job.name]
        change = torch.randn(weight.n_rows, weight.n_cols, generator=torch.Generator().manual_seed(1))
        scores = fisher_scores([change], job.traffic, len(job.n_tokens))[0]
        wanted = torch.stack([((g[job.name].double() @ change.double()) * x[job.name]).sum() for x, g in scoring])
        assert torch.allclose(scores, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max())), job.name
        plain = sum(x[job.name].double().t() @ x[job.name].double() for x, _ in rounding)
        weighted = sum(
            (x[job.name].double() * g[job.name].double().square().sum(-1, keepdim=True)).t() @ x[job.name].double()
            for x, g in rounding
        )
        for found, moment in ((job.moments.plain, plain), (job.moments.weighted, weighted)):
            assert torch.allclose(found.double(), moment, rtol=1e-5, atol=1e-6 * float(moment.abs().max())), job.name
        n_tokens = sum(sample.n_tokens for sample in folds.rounding)
        assert torch.allclose(mean_square.double(), plain.diagonal() / n_tokens, rtol=1e-5)
        assert (job.moments.n_rows, job.moments.n_tokens) == (weight.n_rows, n_tokens)
        assert job.n_tokens.tolist() == [sample.n_scored for sample in folds.scoring]
        assert job.n_choosing == len(folds.choosing)
    assert seen == {w.name for w in weights.values() if w.kind == Kind.LINEAR}


@pytest.mark.parametrize("batch_tokens", [2048, 40])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts_of_any_length_are_measured_as_each_alone(
    build: Build, tmp_path: Path, architecture: str, batch_tokens: int
) -> None:
    samples = tuple(Sample.of(ids) for ids in random_ids(*LENGTHS, *LENGTHS))
    folds = Folds(samples[:5], samples[5:8], samples[8:], "random")
    sweep = sweep_of(build(architecture), folds, tmp_path, batch_tokens)
    assert len(sweep.batches) == (8 if batch_tokens == 2048 else 10)
    require_equal(sweep, build(architecture))


def test_labels_count_where_a_sample_is_scored_and_nowhere_else(build: Build, tmp_path: Path) -> None:
    path, chance = build("llama"), torch.Generator().manual_seed(2)
    masks = [torch.rand(n, generator=chance) < 0.4 for n in LENGTHS]
    for mask in masks:
        mask[1] = True
    masked = [
        Sample({"input_ids": ids}, mask) for ids, mask in zip(random_ids(*LENGTHS, *LENGTHS), [*masks, *masks], strict=True)
    ]
    plain = [Sample.of(sample.ids) for sample in masked]
    mixed = (*masked[:4], plain[4], *masked[5:7], plain[7], *masked[8:])
    require_equal(sweep_of(path, Folds(mixed[:5], mixed[5:8], mixed[8:], "random"), tmp_path), path)
    skeleton = open_model(Checkpoint.of_directory(path))
    trace = Trace(skeleton, CPU, WIDE)
    sample = masked[2]
    assert sample.scored is not None
    assert 0 < sample.n_scored < sample.n_tokens
    (batch,) = batches([sample], 100)
    hidden = in_turn(trace, batch)
    gradient, state = Head(trace).sampled_score_gradient(sample, hidden[-1], torch.Generator().manual_seed(0))
    whole, same = Head(trace).sampled_score_gradient(plain[2], hidden[-1], torch.Generator().manual_seed(0))
    assert torch.equal(state.label[sample.scored], same.label[sample.scored]), "the draws do not depend on what counts"
    assert bool((state.energy[~sample.scored] == 0).all())
    assert torch.equal(state.energy[sample.scored], same.energy[sample.scored])
    assert bool((gradient[0, ~sample.scored] == 0).all())
    assert torch.allclose(gradient[0, sample.scored], whole[0, sample.scored], rtol=1e-5, atol=1e-7)


@contextmanager
def filled(skeleton: Skeleton) -> Iterator[Any]:
    """The whole model in memory."""
    skeleton.fill_rest(CPU, WIDE)
    with ExitStack() as stack:
        for block in skeleton.spec.blocks():
            stack.enter_context(skeleton.filled(block, CPU, WIDE))
        yield skeleton.model
    skeleton.release_rest()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_measured_model_answers_as_before(build: Build, tmp_path: Path, architecture: str) -> None:
    samples = tuple(Sample.of(ids) for ids in random_ids(*LENGTHS, *LENGTHS))
    sweep = sweep_of(build(architecture), Folds(samples[:5], samples[5:8], samples[8:], "random"), tmp_path)
    skeleton, ids = sweep.skeleton, samples[2].ids[None]
    blocks = [skeleton.module(block) for block in skeleton.spec.blocks()]

    def answers() -> tuple[Tensor, ...]:
        with filled(skeleton) as model, torch.no_grad():
            out = model(ids, use_cache=False, output_hidden_states=True)
            return out.logits, *out.hidden_states

    def hooks() -> list[tuple[int, int]]:
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in skeleton.model.modules()]

    def own(*args: Any, **kwargs: Any) -> Any:  # as accelerate puts one there
        return type(blocks[1]).forward(blocks[1], *args, **kwargs)

    blocks[1].forward = own
    before, hooked = answers(), hooks()
    with torch.no_grad():
        assert torch.equal(before[0], load(build(architecture))(ids, use_cache=False).logits)
    assert len(list(swept(sweep))) == sum(w.kind == Kind.LINEAR for w in skeleton.spec.weights)
    assert "forward" not in vars(blocks[0])
    assert vars(blocks[1])["forward"] is own
    assert hooks() == hooked
    assert all(torch.equal(a, b) for a, b in zip(answers(), before, strict=True))


def test_calls_are_recorded_for_each_batch_and_not_for_its_shape(build: Build) -> None:
    """Positions that differ between samples of one length reach the blocks as they are."""
    path, (ids, other) = build("llama"), random_ids(TOKENS, TOKENS)
    steps = torch.arange(TOKENS)
    samples = [
        Sample({"input_ids": ids, "position_ids": steps}),
        Sample({"input_ids": ids, "position_ids": 3 * steps}),
        Sample({"input_ids": other, "position_ids": steps}),
    ]
    found = batches(samples, 1)
    assert [batch.inputs["position_ids"].shape for batch in found] == [(1, TOKENS)] * 3
    skeleton, model = open_model(Checkpoint.of_directory(path)), load(path)
    trace = Trace(skeleton, CPU, WIDE)
    last = []
    for sample, batch in zip(samples, found, strict=True):
        last.append(in_turn(trace, batch)[-1])
        with torch.no_grad():
            logits = torch.cat([part for _, part in Head(trace).logits(sample, last[-1])])
            whole = model(**batch.inputs, use_cache=False).logits[0]
        assert torch.allclose(logits, whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(last[0], last[1], rtol=1e-2, atol=1e-2)
    for block in (BlockId("text", 0), BlockId("text", 1)):
        one, stretched, alike = (trace.call(block, batch).kwargs["position_embeddings"][0] for batch in found)
        assert one.shape == stretched.shape
        assert not torch.equal(one, stretched)
        assert alike is one, "what is equal is kept once"
