"""A finished quantization is trained on in its own format, and replaced only where it came closer to 16 bit."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoModelForCausalLM

import bitwright
from bitwright import Settings
from bitwright.containers.registry import container_of
from bitwright.data.documentation import documentation
from bitwright.errors import BitwrightError
from bitwright.evaluate.divergence import TokenFigures, summarize
from bitwright.evaluate.figures import Divergence
from bitwright.finetune import finished as files
from bitwright.finetune import loss, teacher
from bitwright.finetune import repair as job
from bitwright.finetune import train as loop
from bitwright.finetune.finished import Finished, fits_kept, trained_codes
from bitwright.finetune.repair import Repaired, repair
from bitwright.finetune.train import PartTrainer
from bitwright.formats.families import unpacked
from bitwright.host.progress import QUIET
from tests.conftest import Build

MODEL = {"hidden_size": 256, "intermediate_size": 256}  # rows of whole records, for codebooks
SETTINGS = Settings(
    sequences=16, length=32, held_out_sequences=16, held_out_length=64, dtype="float32", device="cpu", compare=False
)
FORMATS = {"bitsandbytes": (), "compressed-tensors": ("w2-g32", "w4-g32"), "gguf": ("iq2_xxs", "q4_0", "q8_0")}
COARSE = {"w2-g32", "iq2_xxs"}  # of which codes are trained; of others scales and minima
BUDGETS = {"bitsandbytes": "+5%", "compressed-tensors": "3bpw", "gguf": "4bpw"}


ANOTHER_DISK = "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture(scope="module")
def finished(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """finished("gguf") quantizes a small model for that container once and returns a copy of the result."""
    made: dict[str, Path] = {}

    def of(container: str) -> Path:
        suffix = ".gguf" if container == "gguf" else ""
        if container not in made:
            made[container] = tmp_path_factory.mktemp("finished") / f"out{suffix}"
            settings = replace(SETTINGS, container=container, formats=FORMATS[container], calibration="documentation")
            bitwright.quantize(build("llama", **MODEL), made[container], BUDGETS[container], settings=settings, reporter=QUIET)
        folder = tmp_path_factory.mktemp("copy")
        for path in [made[container]] if made[container].is_dir() else made[container].parent.glob("out.*"):
            target = folder / path.name
            if path.is_dir():
                target.mkdir()
                for file in path.iterdir():
                    (target / file.name).write_bytes(file.read_bytes())
            else:
                target.write_bytes(path.read_bytes())
        return folder / f"out{suffix}"

    return of


@pytest.mark.parametrize("container", list(FORMATS))
def test_the_file_is_what_was_trained(container: str, finished: Any, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    out, source = finished(container), build("llama", **MODEL)
    weights = Finished.open(out, str(source), SETTINGS).subject.source.spec.weights
    before = container_of(container).read(out, weights)
    trained: list[Any] = []
    monkeypatch.setattr(job, "trained_codes", lambda model: trained.append(trained_codes(model)) or trained[-1])
    monkeypatch.setattr(Repaired, "kept", True)  # whether it helps is for the next test
    settings = replace(SETTINGS, calibration="code")
    with tempfile.TemporaryDirectory(dir=ANOTHER_DISK) as work:
        said = Mock(wraps=QUIET)
        found = repair(out, str(source), steps=12, learning_rate=0.05, settings=settings, workdir=work, reporter=said)
    assert any("take 4 bits or more" in call.args[0] for call in said.say.call_args_list)
    assert found.steps == 12
    assert found.losses[-1][1] < found.losses[0][1]
    after = container_of(container).read(out, weights)
    for name, packed in trained[0].items():
        assert torch.equal(unpacked(after[name]).decode(), unpacked(packed).decode())
    formats = {packed.format.name for packed in before.values()}
    assert container != "gguf" or {"iq2_xxs", "q4_0"} <= formats
    for name in formats - {"q8_0"}:
        pairs = [(unpacked(before[n]), unpacked(after[n])) for n in trained[0] if before[n].format.name == name]
        assert max(float((old.decode() != new.decode()).float().mean()) for old, new in pairs) > 0.01, name
        codes_moved = any(not torch.equal(old.chosen, new.chosen) for old, new in pairs)
        assert codes_moved == (name in COARSE), name
    proof = json.loads((out / "bitwright.json" if out.is_dir() else out.with_name("out.bitwright.json")).read_text())
    assert proof["repaired"][0]["kl_after"] == found.after.kl
    report, page = (out / name if out.is_dir() else out.with_name(f"out.{name}") for name in ("report.json", "report.html"))
    assert "before 12 steps of training" in json.loads(report.read_text())["notes"][-1]
    assert page.read_text().count("before 12 steps of training") == 1
    if out.is_dir():
        AutoModelForCausalLM.from_pretrained(out)  # the stock library reads it


def test_two_bits_come_closer_and_a_killed_run_ends_in_the_same_bytes(
    finished: Any, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STEPS_BETWEEN", 5)
    whole, stopped, source = finished("compressed-tensors"), finished("compressed-tensors"), str(build("llama", **MODEL))
    names = [tmp_path / "learnt.txt", tmp_path / "held.txt"]
    for i, name in enumerate(names):
        name.write_text(documentation(i, 2)[0][:200_000], encoding="utf-8")
    learnt, held = map(str, names)
    settings = replace(SETTINGS, calibration=learnt, held_out=held, sequences=400)
    found = repair(whole, source, steps=30, learning_rate=0.03, settings=settings)
    assert found.kept
    assert found.ratio < 0.95
    real, count = PartTrainer.training_step, [0]

    def stops(self: PartTrainer, *args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == 13:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(PartTrainer, "training_step", stops)
    before = (stopped / "model.safetensors").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        repair(stopped, source, steps=30, learning_rate=0.03, settings=settings)
    assert (stopped / "model.safetensors").read_bytes() == before
    repair(stopped, source, steps=30, learning_rate=0.03, settings=settings)
    assert count[0] == 13 + 20  # on from the tenth step
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert sorted(p.name for p in stopped.parent.iterdir()) == ["out"]


def test_a_large_vocabulary_is_no_reason_to_run_blocks_twice(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(build("llama", **MODEL))
    monkeypatch.setattr(files, "total_nbytes", lambda: 2**30)
    model.config.vocab_size = 2**30  # our loss never holds all logits
    assert fits_kept(model, 2048)
    assert not fits_kept(model, 2**20)


def test_what_does_not_come_closer_is_not_kept(finished: Any, build: Build) -> None:
    out = finished("bitsandbytes")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    found = repair(
        out, str(build("llama", **MODEL)), steps=4, learning_rate=30.0, settings=replace(SETTINGS, calibration="code")
    )
    assert not found.kept
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_low_rank_changes(finished: Any, build: Build) -> None:
    out = finished("compressed-tensors")
    settings = replace(SETTINGS, calibration="code", sequences=64)
    found = repair(out, str(build("llama", **MODEL)), steps=30, rank=4, learning_rate=0.01, settings=settings)
    assert found.losses[-1][1] < found.losses[0][1]


def test_a_killed_run_draws_the_same_of_the_vocabulary(finished: Any, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parts of it with 64 tokens in the place of many."""
    monkeypatch.setattr(loop, "STEPS_BETWEEN", 2)
    monkeypatch.setattr(job, "STEP_TOKENS", 128)
    monkeypatch.setattr(loss, "OTHERS", 64)
    monkeypatch.setattr(teacher, "LIKELIEST_TOKENS", 2)
    heads, codes = list[int](), list[Any]()
    monkeypatch.setattr(job, "trained_codes", lambda model: codes.append(trained_codes(model)) or codes[-1])
    real = loop.summed_loss

    def stops(states: torch.Tensor, head: Any, target: Any) -> torch.Tensor:
        heads.append(head.weight.n_rows)
        if len(heads) == 6 + 4:
            raise KeyboardInterrupt
        return real(states, head, target)

    monkeypatch.setattr(loop, "summed_loss", stops)
    whole, stopped, source = finished("compressed-tensors"), finished("compressed-tensors"), str(build("llama", **MODEL))
    settings = replace(SETTINGS, calibration="code")
    repair(whole, source, steps=6, learning_rate=0.05, settings=settings)
    with pytest.raises(KeyboardInterrupt):
        repair(stopped, source, steps=6, learning_rate=0.05, settings=settings)
    repair(stopped, source, steps=6, learning_rate=0.05, settings=settings)
    assert max(heads) < 512
    assert len(heads) == 6 + 4 + 4, "on from the second step"
    one, other = ({name: unpacked(packed).decode() for name, packed in found.items()} for found in codes)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("case", ["no checkpoint", "another source", "no source", "no time"])
def test_what_cannot_be_repaired(case: str, finished: Any, build: Build, tmp_path: Path) -> None:
    out, source = finished("bitsandbytes"), str(build("llama", **MODEL))
    settings, minutes = replace(SETTINGS, calibration="code"), 30.0
    if case == "no checkpoint":
        out = build("llama", **MODEL)
        rule = "output/exists"
    elif case == "another source":
        source, rule = str(build("llama")), "finetune/other-source"
    elif case == "no source":
        source, rule = "", "result/source"
    else:
        minutes, rule = 0.01, "finetune/no-time"
    with pytest.raises(BitwrightError) as caught:
        repair(out, source, minutes=minutes, settings=settings)
    assert caught.value.finding.rule == rule


def test_a_gain_that_may_be_chance_is_none() -> None:
    known = {"kl_low": 0.0, "kl_high": 0.0, "kl_median": 0.0, "kl_p99": 0.0, "kl_p999": 0.0, "kl_max": 0.0, "top1": 1.0}
    known |= {"top5": 1.0, "perplexity": 1.0, "reference_perplexity": 1.0, "n_sequences": 4, "n_tokens": 4}
    known |= {"tokens_of_sequence": (1, 1, 1, 1)}
    before = Divergence("before", 0.1, kl_of_sequence=(0.1, 0.1, 0.1, 0.1), **known)
    sure = Divergence("after", 0.08, kl_of_sequence=(0.08, 0.08, 0.08, 0.08), **known)
    luck = Divergence("after", 0.09, kl_of_sequence=(0.02, 0.11, 0.11, 0.12), **known)
    assert Repaired(before, sure, 1, (), 0.0).kept
    assert not Repaired(before, luck, 1, (), 0.0).kept


def test_a_sample_counts_as_much_as_it_has_tokens() -> None:
    """Many short answers that came closer do not outweigh long texts that went away: the interval is of what is printed."""
    tokens = [10] * 12 + [200] * 4

    def found(answers: float, texts: float) -> Divergence:
        figures = [token_figures_of(answers if n == 10 else texts, n) for n in tokens]
        return summarize("one", figures)

    worse = Repaired(found(0.05, 0.05), found(0.04, 0.06), 1, (), 0.0)
    assert worse.after.kl > worse.before.kl
    assert worse.gain[1] < 0
    assert not worse.kept


def token_figures_of(kl: float, n: int) -> TokenFigures:
    zeros, always = torch.zeros(n), torch.ones(n, dtype=torch.bool)
    return TokenFigures(torch.full((n,), kl), zeros, always, zeros, zeros, zeros, always)


def test_a_budget_of_minutes_becomes_steps_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of 4 and 3 seconds: 69 seconds hold twenty steps with the optimizer's share; a run that goes on keeps that."""
    clock = iter([0.0, 4.0, 10.0, 13.0])
    monkeypatch.setattr(job.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(job, "loss_of", lambda model, inputs: model.weight.sum() * inputs["x"].sum())
    model, kept = torch.nn.Linear(2, 2), tmp_path / "steps.json"
    trial = [{"x": torch.ones(1)}, {"x": torch.ones(1)}]
    assert job._steps_within(model, iter(trial), 69.0, False, kept, 90.0) == 20
    assert model.weight.grad is None
    assert job._steps_within(model, iter(()), 1.0, False, kept, 90.0) == 20
