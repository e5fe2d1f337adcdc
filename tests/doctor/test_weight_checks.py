"""Rules over the weights: a sound model, a broken copy of it for each, and statistics against numpy's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bitwright.checkpoint.headers import read_header
from bitwright.doctor import statistics
from bitwright.doctor.doctor import examine
from bitwright.doctor.statistics import measure, same_values
from tests.doctor.broken import CONFIG, FILES, TOKENIZER

LINEAR, EMBEDDING, HEAD = "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "lm_head.weight"


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {EMBEDDING: (16, 8), LINEAR: (8, 8), "model.layers.0.self_attn.k_proj.weight": (4, 8)}
    weights = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    return weights | {"model.norm.weight": torch.ones(8, dtype=torch.bfloat16)}


def saved(directory: Path, weights: dict[str, torch.Tensor]) -> Path:
    for name, value in FILES.items():
        (directory / name).write_text(json.dumps(value))
    save_file(weights, directory / "model.safetensors")
    return directory


def with_row(name: str, row: int, value: float) -> dict[str, torch.Tensor]:
    weights = tensors()
    weights[name][row] = value
    return weights


def tied(change: float) -> dict[str, torch.Tensor]:
    weights = tensors()
    return weights | {HEAD: weights[EMBEDDING] + change}


def alike(name: str, one: int, other: int) -> dict[str, torch.Tensor]:
    """Two tokens with one row, in the embedding or in a head of its own."""
    weights = tied(0.5) if name == HEAD else tensors()
    weights[name][other] = weights[name][one]
    return weights


def nan() -> dict[str, torch.Tensor]:
    weights = tensors()
    weights[LINEAR][3, 5] = torch.nan
    return weights


BROKEN = [
    ({"weights/not-finite"}, nan()),
    ({"weights/not-finite"}, with_row(LINEAR, 2, torch.inf)),
    ({"weights/constant"}, tensors() | {LINEAR: torch.zeros(8, 8, dtype=torch.bfloat16)}),
    ({"weights/constant"}, tensors() | {LINEAR: torch.full((8, 8), 0.5, dtype=torch.bfloat16)}),
    ({"weights/dead-rows"}, with_row(LINEAR, 2, 0.0)),
    ({"weights/float16", "weights/dead-rows"}, with_row(LINEAR, 2, 7e4)),
    ({"weights/subnormal"}, tensors() | {LINEAR: torch.randn(8, 8).mul(2.0**-16).half()}),
    ({"weights/tied-twice"}, tied(0.0)),
    ({"weights/tied-twice", "weights/tied-differ"}, tied(0.5)),
    ({"tokens/untrained"}, with_row(EMBEDDING, 4, 0.0)),
    ({"tokens/untrained"}, with_row(EMBEDDING, 0, 1e-4)),
    ({"tokens/untrained", "tokens/untrained-in-template"}, with_row(EMBEDDING, 3, 0.0)),
    ({"tokens/untrained", "tokens/untrained-in-template"}, alike(EMBEDDING, 3, 4)),
    ({"tokens/untrained"}, alike(EMBEDDING, 0, 5)),
    ({"weights/tied-twice", "weights/tied-differ", "tokens/untrained"}, alike(HEAD, 0, 5)),
]


def test_nothing_is_said_of_a_sound_model(tmp_path: Path) -> None:
    assert examine(saved(tmp_path, tensors()), weights=True) == []


@pytest.mark.parametrize(("rules", "weights"), BROKEN, ids=[str(i) for i in range(len(BROKEN))])
def test_each_mistake_is_found_and_nothing_else(tmp_path: Path, rules: set[str], weights: dict[str, torch.Tensor]) -> None:
    assert {finding.rule for finding in examine(saved(tmp_path, weights), weights=True)} == rules
    by_headers = {finding.rule for finding in examine(tmp_path)}
    assert by_headers == rules & {"weights/tied-twice"}, "weights are read on request alone"


def test_rows_beyond_the_tokens_are_padding(tmp_path: Path) -> None:
    assert examine(saved(tmp_path, with_row(EMBEDDING, 9, 0.0)), weights=True) == []
    assert examine(saved(tmp_path, alike(EMBEDDING, 9, 10)), weights=True) == []


def test_the_place_of_a_nan_is_named(tmp_path: Path) -> None:
    (finding,) = examine(saved(tmp_path, nan()), weights=True)
    assert finding.where == LINEAR
    assert finding.saw == f"1 of 64 entries, the first at flat index {3 * 8 + 5}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 64, 1 << 24])
def test_statistics_are_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, chunk: int
) -> None:
    monkeypatch.setattr(statistics, "CHUNK_BYTES", chunk)
    torch.manual_seed(1)
    weight = (torch.randn(11, 7) * 3).to(dtype)
    weight[4], weight[6], weight[9, 2] = 0, 2, torch.nan
    weight[1, 1] = 2.0**-20 if dtype == torch.float16 else 1e-40
    save_file({"w": weight, "v": weight[0].clone(), "i": torch.ones(3, dtype=torch.int32)}, tmp_path / "x.safetensors")
    refs = read_header(tmp_path / "x.safetensors")
    found = measure(refs["w"], rows_too=True)
    assert found is not None
    whole = np.nan_to_num(weight.double().numpy())
    assert (found.n_entries, found.n_not_finite, found.first_not_finite) == (77, 1, 9 * 7 + 2)
    assert (found.n_zero_rows, found.n_constant_rows) == (1, 1)
    assert found.n_subnormal == int(dtype != torch.float64)
    assert found.largest == np.abs(whole).max()
    assert np.allclose(found.row_norms, np.sqrt((whole**2).mean(1)))
    assert len(found.row_hashes) == len(set(found.row_hashes.tolist())) == 11
    vector = measure(refs["v"])
    assert vector is not None
    assert (vector.n_entries, vector.largest) == (7, np.abs(whole[0]).max())
    assert measure(refs["i"]) is None


def test_tied_matrices_are_compared_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CHUNK_BYTES", 16)
    a = torch.randn(5, 9)
    b = a.clone()
    b[4, 8] += 1e-6
    save_file({"a": a, "same": a.clone(), "b": b, "half": a.half()}, tmp_path / "x.safetensors")
    refs = read_header(tmp_path / "x.safetensors")
    assert same_values(refs["a"], refs["same"])
    assert not same_values(refs["a"], refs["b"])
    assert not same_values(refs["a"], refs["half"])


def test_the_template_of_the_tests_uses_the_token(tmp_path: Path) -> None:
    assert TOKENIZER["added_tokens"][3]["content"] == "<|turn|>"
    assert CONFIG["vocab_size"] == 16
