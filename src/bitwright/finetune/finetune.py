"""Fine-tuning on one page: read, tokenize, check, adapt, train, hold against texts that were kept apart, write."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError

from bitwright.checkpoint.output import ADAPTER_OF, PROOF, TRAINED_BESIDE, Output, owned, write_json, write_text
from bitwright.checkpoint.workdir import content_hash, finite
from bitwright.containers.gguf.container import GGUF
from bitwright.data.tokenizer import tokenizer_of
from bitwright.errors import BitwrightError, fail, in_one_line
from bitwright.finetune.answers import Answers, by_program, held, unlike
from bitwright.finetune.base import Base
from bitwright.finetune.card import adapter_card, draw_losses
from bitwright.finetune.inputs import Layout
from bitwright.finetune.model import adapt, require_loadable
from bitwright.finetune.packed import packed
from bitwright.finetune.qat import finetune_in_format
from bitwright.finetune.texts import require_sound, texts_of, told_of
from bitwright.finetune.tokens import Example
from bitwright.finetune.train import TRAIN, train, write_adapter
from bitwright.finetune.training import (
    ADAMW,
    AFTER,
    ASKED,
    ASKED_SEEING,
    BEFORE,
    IN_FORMAT,
    METHODS,
    OPTIMIZERS,
    QLORA,
    TEXTS,
    WRITTEN,
    AsWritten,
    Outcome,
    Training,
)
from bitwright.host.device import device_of, precision_of
from bitwright.host.heap import release_models
from bitwright.host.packages import require_package
from bitwright.host.places import without_place
from bitwright.host.progress import QUIET as UNHEARD
from bitwright.host.progress import Reporter
from bitwright.host.versions import versions
from bitwright.models.open import auto_class
from bitwright.runtimes.llama_cpp import GGUF_ADAPTER


def finetune(
    model: str | Path,
    data: str,
    out: str | Path,
    *,
    training: Training | None = None,
    workdir: str | Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Outcome:
    """Train ``model`` on ``data`` and write to ``out`` what was learnt.

    Args:
        model: With ``training.method`` "qlora" a bitsandbytes checkpoint in 4 bits, or what ``quantize`` wrote for other
            programs, whose weights stay packed; a 16-bit model is quantized first. With "lora" a model is trained beside as it
            is, in 16 bit too. With "qat" and "scales" any checkpoint that ``quantize`` wrote.
        data: A .csv, .xlsx, .jsonl, .json, .parquet or .txt file, a folder of pictures with captions, or a datasets id.
        out: With "qlora" and "lora" the directory of a low-rank adapter, as stock PEFT reads it. With the others a checkpoint
            of the same formats and size as ``model`` that has learnt.
        training: Method, rank, steps, learning rate and the like.
        workdir: Where a killed run goes on. Default: a hidden folder beside ``out``, removed at the end.
        overwrite: Replace what Bitwright wrote at ``out``.
        reporter: Shows progress. Default: on the terminal.

    Returns:
        Losses and right answers on texts that were kept apart, before and after.

    Raises:
        BitwrightError: Before anything slow, for data that nothing can be learnt from.

    Example:
        >>> training = bitwright.Training(max_steps=50)  # doctest: +SKIP
        >>> bitwright.finetune("demo-out", "questions.csv", "adapter", training=training).after.loss  # doctest: +SKIP
        0.239
    """
    training, reporter, out = training or Training(), reporter or Reporter(), Path(out)
    if training.optimizer not in OPTIMIZERS:
        wanted = " or ".join(OPTIMIZERS)
        raise fail("finetune/optimizer", "--optimizer", saw=training.optimizer, wanted=wanted, help=f"--optimizer {ADAMW}")
    if unused := training.unused():
        where, saw = f"--method {training.method}", f"{', '.join(unused)}, of which it makes no use"
        raise fail("finetune/unused", where, saw=saw, wanted="options of the method", help=f"leave out {' '.join(unused)}")
    if (asked := training.of_a_gpu()) and (device := device_of(training.device)).type != "cuda":
        where, help = " ".join(asked), f"leave out {' '.join(asked)}"
        raise fail("finetune/device", where, saw=f"the training runs on {device}", wanted="a GPU (CUDA)", help=help)
    if training.liger:
        require_package("finetune/package", "--liger", "liger_kernel", "its kernels are what it is for")
    if training.method in IN_FORMAT:
        return finetune_in_format(Path(model), data, out, training, Path(workdir) if workdir else None, overwrite, reporter)
    if training.method not in METHODS:
        raise fail("finetune/method", "--method", saw=training.method, wanted=", ".join(METHODS), help=f"--method {QLORA}")
    if training.rank < 1:
        raise fail("finetune/rank", "--rank", saw=str(training.rank), wanted="1 or more for an adapter", help="--rank 16")
    require_package("finetune/package", "the adapter", "peft", "it writes and loads adapters")
    if training.method == QLORA:
        model = packed(model, data, out, training, reporter)
    return _adapter(model, data, out, training, workdir, overwrite, reporter)


def _adapter(
    model: str | Path, data: str, out: Path, training: Training, workdir: str | Path | None, overwrite: bool, reporter: Reporter
) -> Outcome:
    started = time.monotonic()
    base = Base.of(model, training)
    if base.stored is None and Path(model).suffix == GGUF.suffix:
        reporter.say(f"note: {Path(model).name} is of a family whose names are not known here: its weights are held in 16 bit")
    work_root = Path(workdir) if workdir else out.absolute().parent / f".{out.name}.work"
    with Output(out, False, overwrite).claimed() as claim, owned(work_root, out, ours=not workdir):
        tokenizer = tokenizer_of(base.directory)
        texts = texts_of(data, base.directory, tokenizer, training)
        device = device_of(training.device)
        work = precision_of(training.dtype, device).work
        require_sound(texts, base.directory, tokenizer, training.length)
        for line in told_of(texts, training, base.directory):
            reporter.say(line)
        torch.manual_seed(training.seed)
        ready = base.load(device, work)
        names = adapt(ready, training.targets, training.rank, training.alpha, training.rslora, training.train)
        require_loadable(names, ready.config.model_type)
        reporter.kept = work_root
        count, asked = len(texts.kept), texts.kept[: ASKED_SEEING if texts.pictured else ASKED]
        reporter.plan({BEFORE: count, TRAIN: training.passes(len(texts.learnt)), AFTER: count, WRITTEN: 2 * len(asked)})
        layout = Layout.of(ready, work)
        before = held(ready, texts.kept, training.batch, layout, reporter, BEFORE)
        folder = work_root / content_hash(base.key(), texts.key(), training.told(), str(work), versions())
        losses = train(ready, texts.learnt, layout, folder, reporter, **training.of_trainer(texts.pictured))
        n_trained = sum(p.numel() for p in ready.parameters() if p.requires_grad)
        after = held(ready, texts.kept, training.batch, layout, reporter, AFTER)
        in_memory = held(ready, asked, training.batch, layout, UNHEARD, AFTER) if len(asked) < count else after
        with claim.made() as place:
            write_adapter(place, ready, base.name, names, training.rank, training.alpha, training.rslora)
            for_its_program, auto = base.for_its_program(place, ready, training), auto_class(ready.config).__name__
            del ready
            release_models()
            program = _as_written(base, place, asked, device, work_root, reporter) if asked else None
            if program and (note := unlike(before, in_memory, program)):
                reporter.say(note)
            written = AsWritten(len(asked), in_memory, program) if program else None
            seconds = round(time.monotonic() - started, 1)
            outcome = Outcome(before, after, losses[-1][0], losses, n_trained, len(texts.learnt), seconds, written=written)
            told = {"training": training.told(), TEXTS: texts.key(), "outcome": asdict(outcome)}
            proof = {ADAPTER_OF: without_place(base.name), TRAINED_BESIDE: base.path.name, "class": auto} | told
            write_json(place / PROOF, finite(proof))
            tokenizer.save_pretrained(str(place))
            card = adapter_card(base.name, auto, data, training, outcome) + draw_losses(place, losses) + for_its_program
            write_text(place / "README.md", card)
        if not workdir:
            shutil.rmtree(work_root, ignore_errors=True)
        return outcome


def _as_written(
    base: Base, adapter: Path, asked: Sequence[Example], device: torch.device, scratch: Path, reporter: Reporter
) -> Answers | None:
    """Answers with the adapter as its program loads it in a fresh process; None where none does, which is said. A finished
    adapter is not lost to that."""
    if base.path.suffix == GGUF.suffix and not (adapter / GGUF_ADAPTER).exists():
        return None
    try:
        return by_program(base.path, asked, device, scratch, reporter, WRITTEN, adapter=adapter)
    except (BitwrightError, OSError, SafetensorError) as error:
        saw = error.finding.saw if isinstance(error, BitwrightError) else in_one_line(error)
        reporter.say(f"note: no fresh process ran the adapter, the answers are those in memory: {saw}")
        return None
