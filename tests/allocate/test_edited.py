"""A plan that a person edited: its formats are written, its numbers are counted again, and it is never lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import bitwright
from bitwright import BitwrightError, Plan
from bitwright.allocate.edited import keep_plan, require_unedited
from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.containers.bitsandbytes import BITSANDBYTES
from bitwright.host.progress import Reporter
from bitwright.measure.store import results_piece
from bitwright.models.open import open_model
from bitwright.models.spec import BlockId, Weight
from tests.conftest import TINY, Build

SMALL = replace(TINY, formats=("nf4-b32-dq", "nf4-b64"), held_out_sequences=4, held_out_length=48, compare=False)
QUIET = Reporter(quiet=True)
DOWN = "model.layers.0.mlp.down_proj.weight"


def edit(path: Path, formats: dict[str, str], target: Path | None = None) -> Path:
    """The plan at ``path`` with other formats, and nothing else made right."""
    data = json.loads(path.read_text())
    for choice in data["choices"]:
        choice["format"] = formats.get(choice["weight"], choice["format"])
    target = target or path.with_name("mine.json")
    target.write_text(json.dumps(data))
    return target


@pytest.fixture(scope="module")
def measured(build: Build, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source, and the work directory of a finished run."""
    root = tmp_path_factory.mktemp("edited")
    source = build("llama")
    bitwright.quantize(source, root / "first", "+15%", settings=SMALL, reporter=QUIET, workdir=root / "work")
    return source, root / "work"


def test_an_edited_plan_is_written_from_what_was_measured(measured: tuple[Path, Path], tmp_path: Path) -> None:
    source, work = measured
    kept = {path: path.stat().st_mtime_ns for path in work.rglob(results_piece(BlockId("text", 0)))}
    assert kept
    plan = edit(work / "plan.json", {DOWN: "16bit"}, tmp_path / "mine.json")
    before = (work / "plan.json").read_text()
    out = tmp_path / "out"
    report = bitwright.quantize(source, out, plan=plan, settings=SMALL, reporter=QUIET, workdir=work)
    assert report.plan.choice(DOWN).format == "16bit"
    assert report.plan.nbytes == sum(c.nbytes for c in report.plan.choices) + report.plan.kept_nbytes
    assert report.result.nbytes == report.plan.nbytes
    told = report.plan.choice(DOWN).reason
    assert "saves" in told, told  # its figures are those of the table, and nobody says how near it is to the best
    assert (report.plan.gap, report.plan.price_nats_per_mb) == (None, None)
    assert "best possible" not in (out / "report.html").read_text()
    assert DOWN not in {c.weight for c in report.plan.choices if c.format != "16bit"}
    weights = list(BITSANDBYTES.read(out, _weights(source)))
    assert DOWN not in weights
    assert weights
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "nothing was measured again"
    assert (work / "plan.json").read_text() == before


def _weights(source: Path) -> tuple[Weight, ...]:
    return open_model(Checkpoint.of_directory(source)).spec.weights


@pytest.mark.parametrize(
    ("formats", "rule"),
    [
        ({DOWN: "nf4-b7"}, "formats/unknown"),
        ({DOWN: "nf4-b128"}, "plan/format"),
        ({"model.layers.0.self_attn.q_proj.weight": "16bit"}, "plan/group"),
    ],
)
def test_what_a_plan_may_not_ask_for_is_refused_before_anything_slow(
    measured: tuple[Path, Path], tmp_path: Path, formats: dict[str, str], rule: str
) -> None:
    source, work = measured
    others = {f"model.layers.0.self_attn.{part}_proj.weight": "nf4-b32-dq" for part in "qkv"}
    plan = edit(work / "plan.json", others | formats, tmp_path / "mine.json")
    with pytest.raises(BitwrightError, match=rule):
        bitwright.quantize(source, tmp_path / "out", plan=plan, settings=SMALL, reporter=QUIET, workdir=work)
    assert not (tmp_path / "out").exists()


def test_a_plan_of_another_model_or_container_is_refused(measured: tuple[Path, Path], build: Build, tmp_path: Path) -> None:
    source, work = measured
    data = json.loads((work / "plan.json").read_text())
    for change, rule in (
        ({"container": "gguf"}, "plan/container"),
        ({"choices": data["choices"][1:]}, "plan/weights"),
        ({"choices": [*data["choices"], data["choices"][0]]}, "plan/weights"),
        ({"schema": "bitwright.plan/0"}, "plan/file"),
    ):
        (tmp_path / "mine.json").write_text(json.dumps(data | change))
        with pytest.raises(BitwrightError, match=rule):
            bitwright.quantize(
                source, tmp_path / "out", plan=tmp_path / "mine.json", settings=SMALL, reporter=QUIET, workdir=work
            )


def test_an_edited_plan_is_never_overwritten(measured: tuple[Path, Path], tmp_path: Path) -> None:
    source, work = measured
    original = (work / "plan.json").read_text()
    chosen = Plan.load(work / "plan.json").choice(DOWN).format
    edit(work / "plan.json", {DOWN: "nf4-b64" if chosen == "16bit" else "16bit"}, work / "plan.json")
    mine = (work / "plan.json").read_text()
    try:
        with pytest.raises(BitwrightError, match="plan/edited"):
            bitwright.quantize(source, tmp_path / "out", "+30%", settings=SMALL, reporter=QUIET, workdir=work)
        assert (work / "plan.json").read_text() == mine
        assert not (tmp_path / "out").exists()
    finally:
        (work / "plan.json").write_text(original)
    plan = Plan.load(work / "plan.json")
    keep_plan(work / "plan.json", replace(plan, budget="another"))
    keep_plan(work / "plan.json", plan)
    require_unedited(work / "plan.json")
    report = bitwright.quantize(source, tmp_path / "out", "+30%", settings=SMALL, reporter=QUIET, workdir=work)
    assert Plan.load(work / "plan.json").nbytes == report.plan.nbytes, "a plan of ours is replaced"


def test_mixed_groups_are_written_when_they_are_let_go(measured: tuple[Path, Path], tmp_path: Path) -> None:
    source, work = measured
    formats = {"q": "16bit", "k": "nf4-b32-dq", "v": "nf4-b32-dq"}
    names = {f"model.layers.0.self_attn.{part}_proj.weight": format for part, format in formats.items()}
    plan = edit(work / "plan.json", names, tmp_path / "mine.json")
    free = replace(SMALL, fused_groups=False)
    report = bitwright.quantize(source, tmp_path / "out", plan=plan, settings=free, reporter=QUIET, workdir=work)
    assert report.plan.broken_groups == ("model.layers.0.self_attn.qkv_proj",)
    assert any("vLLM" in note and "qkv_proj" in note for note in report.notes)
