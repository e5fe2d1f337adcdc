"""Scores of the weights whose rows are tokens, against whole-model autograd; and their place in a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitwright.checkpoint.open import open_checkpoint
from bitwright.checkpoint.workdir import WorkDir
from bitwright.formats.format import quantized
from bitwright.measure.calibration import fold
from bitwright.measure.measure import measure_blocks
from bitwright.measure.pieces import load_codes
from bitwright.measure.recipe import Recipe
from bitwright.measure.stream import BlockStream
from bitwright.measure.vocabulary import _embedding_scale, _embedding_scores, _head_scores, _Traces
from bitwright.models.skeleton import build_skeleton
from bitwright.models.spec import EMBEDDING, HEAD, TIED
from bitwright.progress import Reporter
from bitwright.rounding.round import round_nearest
from tests.conftest import Build

CASES = {
    "llama": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "final_logit_softcapping": 3.0},  # scaled, tied and capped
}


@pytest.mark.parametrize("architecture", CASES)
def test_scores_are_those_of_autograd(build: Build, architecture: str) -> None:
    source = build(architecture, torch.float32, **CASES[architecture])
    skeleton = build_skeleton(open_checkpoint(source), vocabulary=True)
    stream = BlockStream(skeleton, torch.device("cpu"), torch.float32)
    stream.fill_rest()
    ids = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(0))
    stream.embed(ids[:1])
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    names = [w.name for w in skeleton.spec.vocabulary]
    first, gradients, states, expected = [], [], [], {name: [] for name in names}
    changes = {
        w.name: torch.randn(w.n_rows, w.n_cols, generator=torch.Generator().manual_seed(i))
        for i, w in enumerate(skeleton.spec.vocabulary)
    }
    for s in range(2):
        kept: dict[str, torch.Tensor] = {}
        hooks = [
            model.model.layers[0].register_forward_pre_hook(lambda _, a, kept=kept: kept.update(first=a[0])),
            model.model.layers[-1].register_forward_hook(
                lambda _, a, out, kept=kept: kept.update(last=out[0] if isinstance(out, tuple) else out)
            ),
        ]
        logits = model(ids[s : s + 1]).logits[0]
        for hook in hooks:
            hook.remove()
        kept["first"].retain_grad()
        with torch.no_grad():
            _, state = stream.sampled_score_gradient(ids[s : s + 1], kept["last"].detach(), torch.Generator().manual_seed(s))
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits, state.label, reduction="sum").backward()
        for name in names:
            expected[name].append(float((model.get_parameter(name).grad * changes[name]).sum()))
        first.append(kept["first"].detach()[0])
        gradients.append(kept["first"].grad[0])
        states.append(state)
    stacked = {field: torch.stack([getattr(state, field) for state in states]) for field in vars(states[0])}
    softcap = CASES[architecture].get("final_logit_softcapping")
    traces = _Traces(ids, torch.stack(first), torch.stack(gradients), **stacked, softcap=softcap)
    for weight in skeleton.spec.vocabulary:
        scores = torch.zeros(1, 2, dtype=torch.float64)
        value = model.get_parameter(weight.name).detach()
        for start in range(0, weight.n_rows, 200):
            part, change = value[start : start + 200], changes[weight.name][start : start + 200]
            if weight.kind != EMBEDDING:
                scores += _head_scores([change], part, start, traces, 0)
            if weight.kind != HEAD:
                scores += _embedding_scores([change], start, traces, 0, _embedding_scale(weight, value, traces))
        assert scores[0].tolist() == pytest.approx(expected[weight.name], rel=2e-3)


@pytest.mark.parametrize(("architecture", "kinds"), [("llama", [EMBEDDING, HEAD]), ("qwen3", [TIED])])
def test_measured_like_one_more_block(build: Build, tmp_path: Path, architecture: str, kinds: list[str]) -> None:
    skeleton = build_skeleton(open_checkpoint(build(architecture, **CASES[architecture])), vocabulary=True)
    assert [w.kind for w in skeleton.spec.vocabulary] == kinds
    format = quantized("q4_0")
    recipe = Recipe({w.name: (format,) for w in skeleton.spec.weights}, {w.name: format for w in skeleton.spec.weights})
    folds = fold(torch.randint(3, 500, (8, 32), generator=torch.Generator().manual_seed(0)), "random", 0)
    work = WorkDir(tmp_path, "key")
    stream = BlockStream(skeleton, torch.device("cpu"), torch.float32)
    found = {m.name: m for m in measure_blocks(stream, folds, recipe, work, Reporter(quiet=True))}
    for weight in skeleton.spec.vocabulary:
        nearest, calibrated = found[weight.name].candidates
        assert 0 < calibrated.output_error < nearest.output_error or weight.kind == EMBEDDING
        assert nearest.damage_nats > 0
        codes = load_codes(work, weight, format)
        assert codes.shape == (weight.n_rows, weight.n_cols)
        value = skeleton.read(weight.name).float()
        assert float((codes.decode() - value).norm() / value.norm()) < 2 * nearest.weight_error
        assert nearest.weight_error == pytest.approx(
            float((round_nearest(value, format).decode() - value).norm() / value.norm()), rel=1e-4
        )
    again = measure_blocks(stream, folds, recipe, work, Reporter(quiet=True))
    assert again == list(found.values())
