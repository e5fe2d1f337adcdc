"""The whole fine-tuning on small models: learns, resumes, and stock PEFT loads what it wrote."""

from __future__ import annotations

import itertools
import json
import re
import resource
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from xml.etree import ElementTree

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from bitwright.checkpoint.result import plan_of
from bitwright.cli.main import app
from bitwright.errors import BitwrightError, fail
from bitwright.finetune import finetune as job
from bitwright.finetune import train as loop
from bitwright.finetune.finetune import finetune
from bitwright.finetune.model import adapt, load
from bitwright.finetune.texts import texts_of
from bitwright.finetune.train import PartTrainer, adapter_of, put_adapter
from tests.conftest import Build, byte_tokenizer
from tests.finetune.conftest import MODEL, QUIET, TRAINING, require_alike


def test_it_learns_and_stock_peft_loads_it(
    quantized: Path, data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = finetune(quantized, data, tmp_path / "adapter", training=TRAINING, reporter=QUIET)
    assert capfd.readouterr().out == ""
    require_alike(outcome)
    assert outcome.steps == 6
    assert outcome.after.loss < outcome.before.loss - 0.3
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card
    assert f"| {outcome.before.loss:.3f} | {outcome.after.loss:.3f} |" in card
    assert f"{outcome.written.n_texts} of them in a fresh process: {outcome.written.by_program.loss:.3f} nats" in card
    assert "sums.csv" in card
    assert "](loss.svg)" in card
    assert ElementTree.parse(tmp_path / "adapter" / "loss.svg").getroot().tag.endswith("svg")
    assert f"{outcome.losses[0][1]:.3f} to {outcome.losses[-1][1]:.3f} nats" in card
    assert str(tmp_path) not in card
    base: Any = AutoModelForCausalLM.from_pretrained(quantized, dtype=torch.float32)
    stock = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        theirs = stock(input_ids=ids).logits
    before = load(quantized, torch.device("cpu"), torch.float32)
    adapt(before, ("*",), TRAINING.rank, TRAINING.alpha, False)
    ours = load(quantized, torch.device("cpu"), torch.float32)
    adapt(ours, ("*",), TRAINING.rank, TRAINING.alpha, False)
    put_adapter(ours, load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    with torch.no_grad():
        mine = ours(input_ids=ids).logits
        plain = before(input_ids=ids).logits
    change, difference = theirs.float() - plain.float(), mine - theirs.float()
    assert change.abs().max() > 0.1
    assert difference.norm() < 0.05 * change.norm()  # bitsandbytes multiplies in the 16 bits that its config names


def test_an_adapter_that_no_fresh_process_runs_is_kept_and_that_is_said(
    quantized: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "by_program", Mock(side_effect=fail("evaluate/process", "x", saw="no PEFT", wanted="", help="")))
    said = Mock(wraps=QUIET)
    outcome = finetune(quantized, data, tmp_path / "adapter", training=replace(TRAINING, max_steps=2), reporter=said)
    assert outcome.after.loss < outcome.before.loss
    assert outcome.written is None
    assert "no program ran what was written" in (tmp_path / "adapter" / "README.md").read_text()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert any(
        "no fresh process ran the adapter, the answers are those in memory: no PEFT" in call.args[0]
        for call in said.say.call_args_list
    )


@pytest.mark.parametrize(("optimizer", "state"), [("adamw", torch.float32), ("adamw8bit", torch.uint8)])
def test_a_stopped_training_goes_on_at_its_last_checkpoint(
    optimizer: str, state: torch.dtype, quantized: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STEPS_BETWEEN", 2)
    whole, training = tmp_path / "whole", replace(TRAINING, rank=64, optimizer=optimizer)  # of 4,096 numbers and more: 8 bits
    outcome = finetune(quantized, data, whole, training=training, reporter=QUIET)
    assert outcome.after.loss < outcome.before.loss - 0.3
    steps, states = [], set()
    real = PartTrainer.training_step

    def stops(self: PartTrainer, *args: Any, **kwargs: Any) -> Any:
        steps.append(self.state.global_step)
        kept: Any = self.optimizer
        while hasattr(kept, "optimizer"):  # accelerate wraps it
            kept = kept.optimizer
        states.update(part.dtype for one in kept.state.values() for n, part in one.items() if n in ("exp_avg", "state1"))
        if len(steps) == 4:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(PartTrainer, "training_step", stops)
    with pytest.raises(KeyboardInterrupt):
        finetune(quantized, data, tmp_path / "stopped", training=training, reporter=QUIET)
    assert not (tmp_path / "stopped").exists()
    finetune(quantized, data, tmp_path / "stopped", training=training, reporter=QUIET)
    assert state in states
    assert steps[4] == 2  # not from the start
    assert not (tmp_path / ".stopped.work").exists()
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert one == other


def test_a_full_disk_is_said_and_what_is_whole_is_gone_on_from(
    quantized: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STEPS_BETWEEN", 2)
    before, own = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, own[1]))  # bytes of a file: the system refuses more, as a full disk does
    try:
        with pytest.raises(BitwrightError) as caught:
            finetune(quantized, data, tmp_path / "out", training=TRAINING, reporter=QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, own)
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.finding.rule == "output/write"
    assert "File too large" in caught.value.finding.saw
    assert not (tmp_path / "out").exists()
    assert finetune(quantized, data, tmp_path / "out", training=TRAINING, reporter=QUIET).steps == 6


def test_a_full_disk_is_said_where_the_adapter_is_written(
    quantized: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries in Rust raise errors of their own; a bare Exception is that of a tokenizer."""
    for error in (SafetensorError("I/O error: No space left on device"), Exception("No space left on device")):
        monkeypatch.setattr(sys.modules[finetune.__module__], "write_adapter", Mock(side_effect=error))
        with pytest.raises(BitwrightError, match="No space left") as caught:
            finetune(quantized, data, tmp_path / "out", training=replace(TRAINING, max_steps=1), reporter=QUIET)
        assert caught.value.finding.rule == "output/write"


def test_a_training_that_ended_takes_no_more_steps(quantized: Path, data: str, tmp_path: Path) -> None:
    """A run that was stopped while its answers were compared, beside a checkpoint that a full disk has cut."""
    training, work = replace(TRAINING, max_steps=2), tmp_path / "work"
    first = finetune(quantized, data, tmp_path / "out", training=training, workdir=work, reporter=QUIET)
    (last,) = work.glob("*/checkpoint-2")
    for cut in (False, True):
        if cut:
            shutil.copytree(last, last.with_name("checkpoint-3"))
            (last.with_name("checkpoint-3") / "trainer_state.json").write_text("")
        again = tmp_path / f"again-{cut}"
        found = finetune(quantized, data, again, training=training, workdir=work, reporter=QUIET)
        assert found.losses == first.losses
        one, other = ((path / "adapter_model.safetensors").read_bytes() for path in (tmp_path / "out", again))
        assert one == other


def test_a_training_stays_on_the_device_of_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other GPUs there are: the Trainer would take all of them, or the first."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    second = loop.arguments(tmp_path, torch.device("cuda:1"))
    assert (second.device, second.n_gpu, chosen[-1]) == (torch.device("cuda:1"), 1, torch.device("cuda:1"))
    assert loop.arguments(tmp_path, torch.device("cpu")).device == torch.device("cpu")


def test_a_loss_that_is_no_number_names_step_and_rows(
    quantized: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.loss_of

    def broken(model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        return real(model, inputs, *args, **kwargs) * (float("nan") if 7 in inputs["rows"].tolist() else 1.0)

    monkeypatch.setattr(loop, "loss_of", broken)
    with pytest.raises(BitwrightError) as caught:
        finetune(quantized, data, tmp_path / "out", training=replace(TRAINING, held_out=0.0, max_steps=0), reporter=QUIET)
    assert re.fullmatch(r"step \d+, rows 7", caught.value.finding.where)


def test_a_gradient_that_is_no_number_is_never_learnt_from(
    quantized: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of step 26 would else be saved, and the good checkpoint of step 25 thrown away for it."""
    real, work = loop.loss_of, tmp_path / "work"

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            return g * float("nan")

    calls = itertools.count(1)
    monkeypatch.setattr(loop, "loss_of", lambda *a, **k: Broken.apply(real(*a, **k)) if next(calls) == 26 else real(*a, **k))
    training = replace(TRAINING, held_out=0.0, max_steps=30)
    with pytest.raises(BitwrightError) as caught:
        finetune(quantized, data, tmp_path / "out", training=training, workdir=work, reporter=QUIET)
    assert re.match(r"step 26, rows \d", caught.value.finding.where)
    assert "checkpoint of step 25" in caught.value.finding.help
    (kept,) = work.glob("*/checkpoint-*/trained.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(kept).values())


def test_a_training_of_one_step_learns(quantized: Path, data: str, tmp_path: Path) -> None:
    finetune(quantized, data, tmp_path / "out", training=replace(TRAINING, max_steps=1), reporter=QUIET)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any(bool(tensor.any()) for name, tensor in tensors.items() if "lora_B" in name)


def test_a_model_in_16_bit_is_quantized_before_it_is_trained_beside(build: Build, data: str, tmp_path: Path) -> None:
    source, training = build("llama", **MODEL), replace(TRAINING, method="qlora", budget="+15%", max_steps=2)
    finetune(source, data, tmp_path / "adapter", training=training, reporter=QUIET)
    base = tmp_path / "adapter-base"
    assert plan_of(base).budget == "+15%"
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    made = (base / "model.safetensors").stat().st_mtime_ns
    finetune(source, data, tmp_path / "adapter", training=training, overwrite=True, reporter=QUIET)
    assert (base / "model.safetensors").stat().st_mtime_ns == made  # it is there, and taken
    for model, other, rule in (
        (build("llama", hidden_size=32, intermediate_size=64), training, "other-base"),
        (base, training, "unused"),
        (source, replace(training, method="lora"), "unused"),
    ):
        with pytest.raises(BitwrightError) as caught:
            finetune(model, data, tmp_path / "adapter", training=other, overwrite=True, reporter=QUIET)
        assert caught.value.finding.rule == f"finetune/{rule}"


def test_rows_are_kept_apart_and_doubles_are_not_learnt(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i % 10}", "completion": f"answer {i % 10}"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = texts_of(str(tmp_path / "rows.jsonl"), tmp_path, byte_tokenizer(), replace(TRAINING, held_out=0.2))
    kept = {tuple(example.ids.tolist()) for example in texts.kept}
    assert len(texts.kept) == 4
    assert len(texts.doubles) >= 2
    assert not any(tuple(example.ids.tolist()) in kept for example in texts.learnt)


def test_what_cannot_be_trained_is_refused_before_anything_slow(
    build: Build, quantized: Path, data: str, tmp_path: Path
) -> None:
    with pytest.raises(BitwrightError) as caught:
        finetune(quantized, data, tmp_path / "a", training=replace(TRAINING, targets=("nothing",)), reporter=QUIET)
    assert caught.value.finding.rule == "finetune/targets"
    assert "q_proj" in caught.value.finding.wanted
    assert not (tmp_path / "a").exists()
    model = load(build("llama", **MODEL), torch.device("cpu"), torch.float32)
    assert len(adapt(model, ("q_proj", "v_proj"), 4, 8.0, False)) == 4
    assert len(adapter_of(model)) == 8


def test_from_the_shell_a_preview_and_a_training(build: Build, data: str, tmp_path: Path) -> None:
    source = str(build("llama", **MODEL))
    preview = CliRunner().invoke(app, ["finetune", source, data, "--preview", "2"])
    assert preview.exit_code == 0, preview.output
    assert "question: 'question'; answer: 'answer'" in preview.output
    assert "30 texts" in preview.output
    assert "--- row 2:" in preview.output  # below the names of the columns
    words = [
        "finetune",
        source,
        data,
        str(tmp_path / "adapter"),
        "--method",
        "lora",
        "--max-steps",
        "2",
        "--rank",
        "2",
        "--json",
    ]
    done = CliRunner().invoke(app, [*words, "--length", "64", "--dtype", "float32", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["steps"] == 2
    again = [*words, "--length", "64", "--dtype", "float32", "--device", "cpu", "--seed", "1"]
    assert CliRunner().invoke(app, again).exit_code == 2
    assert CliRunner().invoke(app, [*again, "--overwrite"]).exit_code == 0
    refused = CliRunner().invoke(
        app, ["finetune", source, data, "--template", "{nothing}", "--answer", "answer", "--preview", "1"]
    )
    assert refused.exit_code == 2
    assert "no column 'nothing'" in refused.output


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"rank": 0}, "rank"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"offload": True}, "device"),
        ({"liger": True}, "device"),
        ({"method": "full"}, "method"),
        ({"targets": ("x",)}, "targets"),
    ],
)
def test_settings_that_do_not_go_together_are_named(
    wrong: dict[str, Any], rule: str, build: Build, data: str, tmp_path: Path
) -> None:
    with pytest.raises(BitwrightError) as caught:
        finetune(build("llama", **MODEL), data, tmp_path / "a", training=replace(TRAINING, **wrong), reporter=QUIET)
    assert caught.value.finding.rule == f"finetune/{rule}"


def test_checkpoints_of_another_training_are_not_gone_on_from(build: Build, data: str, tmp_path: Path) -> None:
    source, work = build("llama", **MODEL), tmp_path / "work"
    first = finetune(source, data, tmp_path / "first", training=TRAINING, workdir=work, reporter=QUIET)
    other = replace(TRAINING, rank=2, max_steps=3)
    second = finetune(source, data, tmp_path / "second", training=other, workdir=work, reporter=QUIET)
    assert (first.steps, second.steps) == (6, 3)
    again = finetune(source, data, tmp_path / "again", training=TRAINING, workdir=work, reporter=QUIET)  # all of it was done
    assert again.losses == first.losses
    one, same = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("first", "again"))
    assert one == same


def test_a_token_of_the_template_that_was_never_trained_stops_the_training(build: Build, data: str, tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(build("llama", **MODEL), source)
    tensors = load_file(source / "model.safetensors")
    tensors["model.embed_tokens.weight"][byte_tokenizer().bos_token_id] = 0.0
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    shown = CliRunner().invoke(app, ["finetune", str(source), data, "--preview", "1"])
    assert shown.exit_code == 2, shown.output
    assert "What is" in shown.output, "the texts are shown all the same"
    with pytest.raises(BitwrightError) as caught:
        finetune(source, data, tmp_path / "adapter", training=TRAINING, reporter=QUIET)
    assert caught.value.finding.rule == "tokens/untrained-in-template"
    (tmp_path / "plain.txt").write_text("\n\n".join(f"Text number {i}." for i in range(8)))
    plain = CliRunner().invoke(app, ["finetune", str(source), str(tmp_path / "plain.txt"), "--preview", "1"])
    assert plain.exit_code == 0, "no template writes these"
    assert "tokens/untrained-in-template" in plain.output
    healthy = CliRunner().invoke(app, ["finetune", str(build("llama", **MODEL)), data, "--preview", "1"])
    assert "untrained" not in healthy.output


def test_equal_texts_leave_nothing_to_learn_from(build: Build, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(['{"prompt": "a", "completion": "b"}'] * 8))
    with pytest.raises(BitwrightError) as caught:
        finetune(build("llama", **MODEL), str(tmp_path / "rows.jsonl"), tmp_path / "a", training=TRAINING, reporter=QUIET)
    assert caught.value.finding.rule == "finetune/all-kept"
