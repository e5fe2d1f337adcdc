"""The whole job into one GGUF file: quality in llama.cpp, bytes to the last one, resumption, companions, refusals."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFReader

import bitwright
from bitwright import BitwrightError, Settings
from bitwright.host.progress import Reporter
from bitwright.measure.store import results_piece
from bitwright.models.spec import BlockId
from bitwright.prove.proof import RESULT
from tests.conftest import Build

SMALL = Settings(
    container="gguf",
    sequences=24,
    length=48,
    held_out_sequences=4,
    held_out_length=64,
    dtype="float32",
    calibration="documentation",
)
QUIET = Reporter(quiet=True)
MODEL = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "tie_word_embeddings": True}


def test_quantize_beats_the_recipe_at_its_bytes(build: Build, tmp_path: Path) -> None:
    source, out = build("llama", **MODEL), tmp_path / "small.gguf"
    report = bitwright.quantize(source, out, "like q4_k_m", settings=SMALL, reporter=QUIET, workdir=tmp_path / "work")
    stock = report.verdict.entry("Q4_K_M, to nearest")
    assert report.verdict.shipped == RESULT
    assert report.result.nbytes == report.plan.nbytes == out.stat().st_size <= stock.nbytes
    assert report.result.divergence.kl < 0.7 * stock.divergence.kl
    assert report.verdict.entry("16-bit arithmetic").divergence.kl < 0.2 * report.result.divergence.kl
    assert {p.name for p in tmp_path.iterdir()} == {
        "small.gguf",
        "small.Modelfile",
        "small.report.json",
        "small.report.html",
        "small.README.md",
        "small.bitwright.json",
        "work",
    }
    saved = json.loads((tmp_path / "small.report.json").read_text())
    assert saved["plan"]["container"] == "gguf"
    formats = {c.weight: c.format for c in report.plan.choices}
    assert "model.embed_tokens.weight" in formats
    stored = {t.name: t.tensor_type.name.lower() for t in GGUFReader(out).tensors}
    assert stored["token_embd.weight"] == formats["model.embed_tokens.weight"].replace("16bit", "bf16")
    table = bitwright.Sensitivity.load(tmp_path / "work" / "sensitivity.json")
    assert table.sizes["Q4_K_M"] == stock.nbytes
    assert table.sizes["Q2_K"] < table.sizes["Q4_K_M"] < table.sizes["Q8_0"]
    again = bitwright.evaluate(str(source), [str(out)], sequences=4, length=64, greedy=4, reporter=QUIET)
    assert len(again[-1].divergence.greedy) == 4
    assert again[-1].divergence.kl == pytest.approx(report.result.divergence.kl, rel=1e-3)
    assert again[-1].nbytes == out.stat().st_size


def test_resumed_it_writes_the_same_bytes(build: Build, tmp_path: Path) -> None:
    """Blocks kept, embedding and head measured anew; a second output from the same work directory."""
    source, digests = build("llama", **MODEL), []
    settings = replace(SMALL, sequences=8, compare=False, formats=("q3_k", "q4_k", "q6_k"))
    for name in ("a", "b"):
        out = tmp_path / name / "model.gguf"
        out.parent.mkdir()
        bitwright.quantize(source, out, "4.6bpw", settings=settings, reporter=QUIET, workdir=tmp_path / "work")
        digests.append(hashlib.sha256(out.read_bytes()).hexdigest())
        for piece in (tmp_path / "work").rglob(results_piece(BlockId("text", 2))):
            piece.unlink()
    assert digests[0] == digests[1]


def test_names_and_budgets_that_do_not_fit(build: Build, tmp_path: Path) -> None:
    source = build("llama", **MODEL)

    def refused(out: str, budget: str, **options: object) -> str:
        with pytest.raises(BitwrightError) as caught:
            bitwright.quantize(source, tmp_path / out, budget, settings=replace(SMALL, **options), reporter=QUIET)
        assert list(tmp_path.glob("[!.]*.gguf")) == []
        return caught.value.finding.rule

    assert refused("directory", "+10%") == "output/suffix"
    assert refused("model.gguf", "+10%", container="bitsandbytes") == "output/suffix"
    assert refused("model.gguf", "like Q9_K") == "budget/like"
    assert refused("model", "like Q4_K_M", container="bitsandbytes") == "budget/like"
    assert refused("model.gguf", "1KB") == "budget/minimum"
    assert refused("model.gguf", "+0%", formats=("nf4-b64",)) == "formats/unknown"
    assert refused("model.gguf", "+0%", imatrix=str(tmp_path / "none")) == "imatrix/file"
