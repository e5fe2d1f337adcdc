"""llama.cpp's importance matrix: both formats, ours read back, hostile bytes, and its effect on what is measured."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from bitwright import Settings, measure
from bitwright.checkpoint.open import open_checkpoint
from bitwright.containers.gguf.imatrix import read_imatrix, write_imatrix
from bitwright.errors import BitwrightError
from bitwright.measure.curvature import column_scale
from bitwright.models.open import open_model
from bitwright.models.source import Source
from tests.conftest import Build


@pytest.fixture
def source(build: Build) -> Source:
    return open_model(open_checkpoint(build("llama"))).source


def means_of(source: Source) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {w.name: torch.rand(w.n_cols, generator=generator) + 0.1 for w in source.spec.weights}


def binary(means: dict[str, np.ndarray], calls: int) -> bytes:
    """The older format, as llama.cpp wrote it until 2025."""
    data = struct.pack("<i", len(means))
    for name, mean in means.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(mean))
        data += (mean * calls).astype("<f4").tobytes()
    return data + struct.pack("<ii", calls, 4) + b"text"


def test_written_and_read_back(source: Source, tmp_path: Path) -> None:
    means = means_of(source)
    write_imatrix(tmp_path / "imatrix.gguf", source, means, 4096, 512, "a text")
    found = read_imatrix(tmp_path / "imatrix.gguf", source)
    assert found.keys() == means.keys()
    for name, mean in means.items():
        assert torch.allclose(found[name], mean, rtol=1e-5)


def test_the_older_format(source: Source, tmp_path: Path) -> None:
    means = {"blk.0.attn_q.weight": np.linspace(1, 2, 64), "blk.1.ffn_down.weight": np.linspace(0, 3, 160)}
    (tmp_path / "imatrix.dat").write_bytes(binary(means, 7))
    found = read_imatrix(tmp_path / "imatrix.dat", source)
    assert found.keys() == {"model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"}
    assert found["model.layers.1.mlp.down_proj.weight"].numpy() == pytest.approx(means["blk.1.ffn_down.weight"], rel=1e-6)


def test_files_that_are_none(source: Source, tmp_path: Path) -> None:
    whole = binary({"blk.0.attn_q.weight": np.ones(64)}, 3)
    wrong = binary({"blk.0.attn_q.weight": np.ones(63)}, 3)
    negative = binary({"blk.0.attn_q.weight": -np.ones(64)}, 3)
    for data in (b"", b"GGUF", whole[:60], wrong, negative, binary({"somewhere": np.ones(4)}, 3), b"\xff" * 64):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(BitwrightError) as caught:
            read_imatrix(tmp_path / "bad", source)
        assert caught.value.finding.help


def test_scales_are_replaced_and_correlations_kept() -> None:
    x = torch.randn(500, 8)
    moment = x.t() @ x / 500
    importance = torch.rand(8) + 0.5
    scale = column_scale(importance, moment.diagonal())
    scaled = moment * scale[:, None] * scale
    assert torch.allclose(scaled.diagonal(), importance)

    def correlation(m: torch.Tensor) -> torch.Tensor:
        return m / m.diagonal().sqrt()[:, None] / m.diagonal().sqrt()

    assert torch.allclose(correlation(scaled), correlation(moment), atol=1e-5)
    assert torch.equal(column_scale(torch.tensor([0.0, 4.0]), torch.tensor([2.0, 0.0])), torch.ones(2)), "nothing known"


def test_a_measurement_writes_one_and_takes_it(build: Build, tmp_path: Path) -> None:
    """Its own matrix changes nothing; another one does."""
    directory, settings = build("llama"), Settings(container="gguf", sequences=8, length=32, calibration="documentation")
    plain = measure(directory, tmp_path / "a.json", imatrix_output=tmp_path / "own.gguf", settings=settings)
    source = open_model(open_checkpoint(directory)).source
    assert len(read_imatrix(tmp_path / "own.gguf", source)) == len(source.spec.weights)
    means = {name: mean[torch.randperm(len(mean))] * 9 for name, mean in means_of(source).items()}
    write_imatrix(tmp_path / "other.gguf", source, means, 64, 32, "x")

    def with_matrix(name: str) -> list[float]:
        chosen = Settings(**{**vars(settings), "imatrix": str(tmp_path / name)})
        table = measure(directory, tmp_path / f"{name}.json", settings=chosen)
        return [r.output_error for w in table.weights for r in w.rows]

    own = [r.output_error for w in plain.weights for r in w.rows]
    assert with_matrix("own.gguf") == pytest.approx(own, rel=0.02, abs=1e-6)
    assert with_matrix("other.gguf") != pytest.approx(own, rel=0.02)
