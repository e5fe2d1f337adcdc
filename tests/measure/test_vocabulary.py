"""Scores of the weights whose rows are tokens, against whole-model autograd; and their place in a measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitwright.checkpoint.open import open_checkpoint
from bitwright.containers.gguf.container import GGUF
from bitwright.data.folds import fold
from bitwright.data.samples import Sample, batches
from bitwright.errors import BitwrightError
from bitwright.host.progress import Reporter
from bitwright.measure import measure as measuring
from bitwright.measure import vocabulary
from bitwright.measure.head import Head
from bitwright.measure.store import load_block, load_codes
from bitwright.measure.subject import Subject
from bitwright.measure.trace import Trace
from bitwright.measure.vocabulary import Ends, _embedding_scores, _head_scores, _of_rows
from bitwright.models.logits import LogitRule
from bitwright.models.open import open_model
from bitwright.models.spec import BlockId, Kind, Weight
from bitwright.plan import Rounding
from bitwright.settings import Settings
from tests.conftest import TINY, Build
from tests.measure.streamed import boundaries

CASES = {
    "llama": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "phi": {"tie_word_embeddings": False},  # with a bias
    "granite": {"tie_word_embeddings": True, "logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "final_logit_softcapping": 3.0},  # scaled, tied and capped
}


@pytest.mark.parametrize("architecture", CASES)
def test_scores_are_those_of_autograd(build: Build, architecture: str) -> None:
    source = build(architecture, torch.float32, **CASES[architecture])
    skeleton = open_model(open_checkpoint(source), vocabulary=GGUF.vocabulary)
    device = torch.device("cpu")
    ids = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(0))
    samples = [Sample.of(ids[0]), Sample({"input_ids": ids[1, :17]}, torch.arange(17) % 3 == 1)]
    trace, (batch, _) = Trace(skeleton, device, torch.float32), batches(samples, 1)
    boundaries(trace, batch)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    names = [w.name for w in skeleton.spec.vocabulary]
    first, gradients, states, expected = [], [], [], {name: [] for name in names}
    changes = {
        w.name: torch.randn(w.n_rows, w.n_cols, generator=torch.Generator().manual_seed(i))
        for i, w in enumerate(skeleton.spec.vocabulary)
    }
    for s, sample in enumerate(samples):
        kept: dict[str, torch.Tensor] = {}
        hooks = [
            model.model.layers[0].register_forward_pre_hook(lambda _, a, kept=kept: kept.update(first=a[0])),
            model.model.layers[-1].register_forward_hook(
                lambda _, a, out, kept=kept: kept.update(last=out[0] if isinstance(out, tuple) else out)
            ),
        ]
        logits = model(sample.ids[None]).logits[0]
        for hook in hooks:
            hook.remove()
        kept["first"].retain_grad()
        with torch.no_grad():
            _, state = Head(trace).sampled_score_gradient(sample, kept["last"].detach(), torch.Generator().manual_seed(s))
        model.zero_grad()
        counts = slice(None) if sample.scored is None else sample.scored
        torch.nn.functional.cross_entropy(logits[counts], state.label[counts], reduction="sum").backward()
        for name in names:
            expected[name].append(float((model.get_parameter(name).grad * changes[name]).sum()))
        first.append(kept["first"].detach()[0])
        gradients.append(kept["first"].grad[0])
        states.append(state)
    joined = {field: torch.cat([getattr(state, field) for state in states]) for field in vars(states[0])}
    ends = Ends(
        torch.cat([sample.ids for sample in samples]),
        torch.tensor([0] * 24 + [1] * 17),
        torch.cat(first),
        torch.cat(gradients),
        **joined,
        rule=LogitRule.of(model.config),
        bias=None if model.lm_head.bias is None else model.lm_head.bias.detach(),
    )
    for weight in skeleton.spec.vocabulary:
        scores = torch.zeros(1, 2, dtype=torch.float64)
        value = model.get_parameter(weight.name).detach()
        for start in range(0, weight.n_rows, 200):
            part, change = value[start : start + 200], changes[weight.name][start : start + 200]
            if weight.kind != Kind.EMBEDDING:
                scores += _head_scores([change], part, start, ends, 2)
            if weight.kind != Kind.HEAD:
                scale, same = _of_rows(weight, value, ends, samples)
                assert same is ends
                scores += _embedding_scores([change], start, ends, 2, scale)
        assert scores[0].tolist() == pytest.approx(expected[weight.name], rel=2e-3)


def test_a_row_of_the_embedding_is_not_what_stands_in_an_images_place() -> None:
    """Nothing reaches the embedding there; where a text without images has something else, a model is refused."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(50, 16, generator=generator)
    ids = torch.randint(0, 50, (24,), generator=generator)
    first = 3 * value[ids]
    first[2:7] = torch.randn(5, 16, generator=generator)
    first[8] = 1.5 * value[ids[8]]  # the direction of its row, but another factor
    seen = Sample({"input_ids": ids[:12]}, None, {"pixel_values": torch.zeros(1)})
    gradient, none = torch.randn(24, 16, generator=generator), torch.zeros(24)
    ends = Ends(ids, torch.arange(24) // 12, first, gradient, first, none, ids, none, LogitRule())
    weight = Weight("embed.weight", BlockId("text", 1), 50, 16, 0, Kind.EMBEDDING)
    scale, found = _of_rows(weight, value, ends, [seen, Sample.of(ids[12:])])
    assert scale == pytest.approx(3)
    silent = (found.gradient == 0).all(1).nonzero()[:, 0].tolist()
    assert silent == [2, 3, 4, 5, 6, 8]
    with pytest.raises(BitwrightError, match="not a multiple"):
        _of_rows(weight, value, ends, [Sample.of(ids[:12]), Sample.of(ids[12:])])


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(cap=5.0), LogitRule(0.25), LogitRule(2.0, 5.0)])
def test_damage_of_a_head_is_the_divergence_itself(rule: LogitRule) -> None:
    """Large changes too, for which the quadratic form has no ceiling; positions that do not count add nothing."""
    generator = torch.Generator().manual_seed(0)
    states, head = torch.randn(30, 16, generator=generator), torch.randn(200, 16, generator=generator)
    changes = [size * torch.randn(200, 16, generator=generator) for size in (0.01, 0.3, 3.0)]
    bias = torch.randn(200, generator=generator)

    def log_p(weight: torch.Tensor) -> torch.Tensor:
        return rule.logits(states @ weight.t() + bias).double().log_softmax(-1)

    counts = torch.arange(30) % 4 != 0
    sample = torch.arange(3).repeat_interleave(10)
    normalizer = rule.logits(states @ head.t() + bias).logsumexp(-1)
    nothing = torch.empty(30, 0)
    ends = Ends(sample, sample, nothing, nothing, states, normalizer, sample, counts.float(), rule, bias)
    assert vocabulary._is_known(head, ends)
    assert not vocabulary._is_known(head, replace(ends, rule=LogitRule(1.5 * rule.factor)))
    found = vocabulary._HeadDivergence(3, ends)
    for rows in torch.arange(200).split(70):
        found.add([change[rows] for change in changes], head[rows], int(rows[0]))
    p = log_p(head)
    for c, change in enumerate(changes):
        kl = (p.exp() * (p - log_p(head + change))).sum(-1) * counts
        expected = torch.stack([kl[sample == s].sum() for s in range(3)])
        assert torch.allclose(found.as_scores(3)[c].square() / 2, expected, rtol=1e-3, atol=1e-6)


def test_a_head_whose_logits_are_not_understood_stays_in_16_bit(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LogitRule, "of", lambda config: LogitRule(factor=2.0))
    subject = Subject.open(build("llama"), replace(TINY, container="bitsandbytes"))
    table = measuring.measure(subject, tmp_path, Reporter()).sensitivity
    (head,) = (weight for weight in table.weights if weight.role == "lm_head")
    assert [row.format for row in head.rows] == ["16bit"]
    assert "lm_head.weight stays in 16 bit" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("architecture", "container", "format", "kinds"),
    [
        ("llama", "gguf", "q4_0", [Kind.EMBEDDING, Kind.HEAD]),
        ("qwen3", "gguf", "q4_0", [Kind.TIED]),
        ("llama", "bitsandbytes", "nf4-b32-dq", [Kind.HEAD]),  # 128 rows share second-level scales
    ],
)
def test_measured_like_one_more_block(
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    container: str,
    format: str,
    kinds: list[Kind],
) -> None:
    settings = Settings(container=container, formats=(format,), dtype="float32", calibration="documentation")
    subject = Subject.open(build(architecture, **CASES[architecture]), settings)
    spec, stored = subject.source.spec, subject.container.format(format)
    rounder = subject.container.rounder(stored)
    assert [w.kind for w in spec.vocabulary] == kinds
    method = replace(subject.method, stock={w.name: stored for w in spec.weights})
    assert method.formats == {w.name: (stored,) for w in spec.weights}
    subject = replace(subject, method=method)
    ids = torch.randint(3, 500, (8, 32), generator=torch.Generator().manual_seed(0))
    folds = fold({"random": [Sample.of(row) for row in ids]}, 0)
    monkeypatch.setattr(measuring, "calibration_folds", lambda *_: folds)
    monkeypatch.setattr(vocabulary, "LOGITS_BYTES", 4 * sum(sample.n_tokens for sample in folds.scoring) * 200)  # 200 rows
    measured = measuring.measure(subject, tmp_path, Reporter(quiet=True))
    places = (*spec.blocks(), spec.after_blocks)
    found = {scores.name: scores for block in places for scores in load_block(measured.work, block)}
    assert set(found) == {w.name for w in spec.weights}
    for weight in spec.vocabulary:
        nearest, calibrated = found[weight.name].formats
        assert (nearest.rounding, calibrated.rounding) == (Rounding.NEAREST, Rounding.CALIBRATED)
        assert 0 < calibrated.output_error < nearest.output_error or weight.kind == Kind.EMBEDDING
        assert nearest.damage_nats > 0
        packed = load_codes(measured.work, weight, stored)
        assert packed.shape == (weight.n_rows, weight.n_cols)
        value = subject.source.read(weight.name).float()
        assert float((subject.container.codes(packed).decode() - value).norm() / value.norm()) < 2 * nearest.weight_error
        assert nearest.weight_error == pytest.approx(
            float((rounder.nearest(value, stored).decode() - value).norm() / value.norm()), rel=1e-3
        )
    again = measuring.measure(subject, tmp_path, Reporter(quiet=True))
    assert again.sensitivity == measured.sensitivity
    assert {scores.name: scores for block in places for scores in load_block(again.work, block)} == found
