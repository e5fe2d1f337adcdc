"""The whole job on a small real model: quality, bytes, determinism, resumption, the gate, the errors."""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import bitwright
from bitwright import BitwrightError, Plan, Settings
from bitwright.containers.rivals import SAME_BYTES, SKIPS_ONLY
from bitwright.errors import Finding
from bitwright.evaluate.evaluate import Candidate, PartlyComparedError
from bitwright.host.progress import Reporter
from bitwright.plan import NOISE_FLOOR
from bitwright.prove import proof
from bitwright.prove.proof import RESULT
from bitwright.report.report import Report
from tests.conftest import ARCHITECTURES, Build
from tests.nursery import Nursery

MENU = ("nf4-b64", "nf4-b32-dq", "nf4-b64-dq")  # on weights this small the map of double quantization is not free
SMALL = Settings(formats=MENU, sequences=24, length=48, held_out_sequences=4, held_out_length=64, dtype="float32")
QUIET = Reporter(quiet=True)
MODEL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}


def digest(directory: Path) -> dict[str, str]:
    """Hash of every file that must come out the same (the report holds seconds)."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir() if p.stem != "report"}


def test_quantize_beats_stock_within_its_budget(build: Build, tmp_path: Path) -> None:
    source, out = build("llama", **MODEL), tmp_path / "out"
    report = bitwright.quantize(str(source), out, "+15%", settings=SMALL, reporter=QUIET, workdir=tmp_path / "work")
    rivals = {report.verdict.stock, NOISE_FLOOR, "uniform nf4-b32-dq", SAME_BYTES, SKIPS_ONLY}  # of the menu the finest blocks
    assert {e.label for e in report.verdict.entries} == {RESULT, *rivals}
    stock, floor = report.verdict.entry(report.verdict.stock), report.verdict.entry(NOISE_FLOOR)
    assert report.result.nbytes <= 1.15 * stock.nbytes
    assert report.result.divergence.kl < 0.8 * stock.divergence.kl
    assert report.verdict.entry(SAME_BYTES).divergence.kl < stock.divergence.kl
    assert floor.divergence.kl < 0.2 * report.result.divergence.kl
    written = sum(p.numel() * p.element_size() for p in load_file(out / "model.safetensors").values())
    assert written == report.plan.nbytes == report.result.nbytes
    saved = json.loads((out / "report.json").read_text())
    assert saved["kl_ratio_to_stock"] == pytest.approx(report.kl_ratio_to_stock)
    assert len(saved["sentences"]) == 3
    assert sum(row["share"] for row in saved["coverage"]) == pytest.approx(1)
    own = json.loads((out / "bitwright.json").read_text())
    assert Plan.from_dict(own["plan"]) == Plan.from_dict(saved["plan"])
    assert own["provenance"]["seed"] == 0
    table = bitwright.Sensitivity.load(tmp_path / "work" / "sensitivity.json")
    assert all(row.output_error > 0 for w in table.weights for row in w.rows if row.format != "16bit")
    again = bitwright.evaluate(str(source), [str(out)], sequences=4, length=64, greedy=8, reporter=QUIET)
    assert [len(entry.divergence.greedy) for entry in again] == [4, 4]
    assert sum(again[0].divergence.greedy) >= sum(again[1].divergence.greedy)
    assert again[-1].divergence.kl == pytest.approx(report.result.divergence.kl, rel=1e-3)
    assert list(tmp_path.glob(".*")) == [], "no scratch is left"


def matrices_of(source: Path) -> set[str]:
    """What the classes of transformers multiply by; a head that is the embedding is a table of it."""
    model = AutoModelForCausalLM.from_pretrained(source)
    modules = {name: module for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))}
    table = model.get_input_embeddings().weight
    return {f"{name}.weight" for name, module in modules.items() if module.weight is not table}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_goes_through(build: Build, tmp_path: Path, architecture: str) -> None:
    settings, source = replace(SMALL, sequences=8, compare=False), build(architecture)
    report = bitwright.quantize(source, tmp_path / "out", "+40%", settings=settings, reporter=QUIET)
    assert report.result.divergence.kl < report.verdict.entry(report.verdict.stock).divergence.kl
    assert sorted(choice.weight for choice in report.plan.choices) == sorted(matrices_of(source)), "every matrix, and once"
    assert {choice.format for choice in report.plan.choices} != {"16bit"}


def test_the_same_seed_gives_the_same_bytes(build: Build, tmp_path: Path) -> None:
    settings = replace(SMALL, sequences=8, compare=False)
    found = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = tmp_path / place / "out"  # of one name, which the model card repeats
        out.parent.mkdir()
        bitwright.quantize(build("llama"), out, settings=replace(settings, seed=seed), reporter=QUIET)
        found.append(digest(out))
    assert found[0] == found[1]
    assert found[2]["model.safetensors"] != found[0]["model.safetensors"]


def test_killed_it_resumes_to_the_same_bytes(build: Build, nursery: Nursery | None, tmp_path: Path) -> None:
    """Two kills while it measures; docs/reliability.md names the command that makes hundreds, at any moment."""
    if nursery is None:
        pytest.skip("no forks here")
    source = str(build("llama", num_hidden_layers=4))
    words = ("quantize", source, "out", "--sequences", "8", "--length", "32", "--dtype", "float32", "--no-compare")
    words = (*words, "--calibration", "documentation", "--workdir", "../work")
    places = {name: tmp_path / name / "in" for name in ("whole", "killed")}
    for place in places.values():
        place.mkdir(parents=True)
    whole = nursery.shell(*words, cwd=places["whole"])
    assert whole.returncode == 0, whole.stderr
    n_pieces, end = len(list((tmp_path / "whole" / "work").rglob("*"))), time.monotonic() + 300
    for pieces in (n_pieces // 4, n_pieces // 2):  # moments are counted in pieces: a busy machine is no excuse
        with tempfile.TemporaryFile() as said:
            process = nursery.begin(*words, cwd=places["killed"], files=[said.fileno(), said.fileno()])
            while len(list((tmp_path / "killed" / "work").rglob("*"))) < pieces:
                assert time.monotonic() < end, "it came to its end, or to none"
                time.sleep(0.01)
            process.kill()
        assert not (places["killed"] / "out").exists()
    again = nursery.shell(*words, cwd=places["killed"])
    assert again.returncode == 0, again.stderr
    assert digest(places["killed"] / "out") == digest(places["whole"] / "out")


def test_the_memory_ceiling_is_refused_with_the_least_that_works(build: Build, tmp_path: Path) -> None:
    with pytest.raises(BitwrightError, match="memory/ceiling") as caught:
        bitwright.quantize(build("llama"), tmp_path / "out", settings=replace(SMALL, max_memory=10**6), reporter=QUIET)
    assert "at least" in caught.value.finding.wanted
    assert not (tmp_path / "out").exists()


def poisoned(source: Path, target: Path, value: float) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].clone()
    tensors[name][3, 4] = value
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_a_nan_weight_stops_the_run_and_is_named(build: Build, tmp_path: Path) -> None:
    source = poisoned(build("llama"), tmp_path / "nan", float("nan"))
    settings = replace(SMALL, calibration="documentation", compare=False)
    with pytest.raises(BitwrightError, match="up_proj") as caught:
        bitwright.quantize(source, tmp_path / "out", settings=settings, reporter=QUIET)
    assert caught.value.finding.rule == "checkpoint/not-finite"
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
def test_gpu_run_beats_stock(build: Build, tmp_path: Path) -> None:
    settings = replace(SMALL, device="cuda", dtype="auto", compare=False)
    report = bitwright.quantize(build("llama", **MODEL), tmp_path / "out", "+15%", settings=settings, reporter=QUIET)
    assert report.provenance["device"] == "cuda"
    assert report.result.divergence.kl < report.verdict.entry(report.verdict.stock).divergence.kl


def test_import_is_light() -> None:
    code = "import sys, bitwright; assert 'torch' not in sys.modules; bitwright.Settings(); "
    code += "assert bitwright.Plan and bitwright.Sensitivity and 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_that_needs_its_own_code_is_refused_before_anything_slow(build: Build, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(build("llama"), source)
    config = json.loads((source / "config.json").read_text()) | {"auto_map": {"AutoConfig": "code.Config"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "code.py").write_text("from transformers import LlamaConfig as Config\n")
    with pytest.raises(BitwrightError) as caught:
        bitwright.quantize(source, tmp_path / "out", settings=replace(SMALL, trust_remote_code=True), reporter=QUIET)
    assert caught.value.finding.rule == "source/code"
    assert not (tmp_path / "out").exists()


def test_a_rival_that_cannot_be_run_is_a_note_and_without_stock_there_is_no_verdict(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, lost = proof.compare, [""]

    def partly(reference: Candidate, candidates: list[Candidate], *args: Any, **options: Any) -> Any:
        found = dict(enumerate(whole(reference, candidates, *args, **options)))
        guilty = Finding("evaluate/process", "x", "exit code 1", "a", "b")
        failures = {i: guilty for i, candidate in enumerate(candidates) if candidate.label == lost[0]}
        if failures:
            raise PartlyComparedError(failures, {i: line for i, line in found.items() if i not in failures})
        return list(found.values())

    monkeypatch.setattr(proof, "compare", partly)
    words: dict[str, Any] = {"workdir": tmp_path / "work", "settings": SMALL, "reporter": QUIET}
    lost[0] = "stock NF4"
    with pytest.raises(BitwrightError, match="evaluate/process"):
        bitwright.quantize(build("llama", **MODEL), tmp_path / "out", "+20%", **words)
    assert not (tmp_path / "out").exists()
    lost[0] = NOISE_FLOOR
    report = bitwright.quantize(build("llama", **MODEL), tmp_path / "out", "+20%", **words)
    assert f"could not be run: {NOISE_FLOOR}: exit code 1" in report.notes
    assert NOISE_FLOOR not in {entry.label for entry in report.verdict.entries}
    assert Report.load(tmp_path / "out" / "report.json").verdict == report.verdict
    assert (tmp_path / "out" / "report.html").exists()
