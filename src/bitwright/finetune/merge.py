"""An adapter becomes part of a quantized file: merged into the 16-bit model, which is rounded anew with what was learnt.

Merging into 4-bit weights erases a change (a change of 1 % moves hardly any code), so that is not offered. Whether the change
survived is measured on the texts that training kept apart, on the file that was written.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from bitwright.checkpoint.open import local_directory
from bitwright.checkpoint.output import PROOF, Output, owned
from bitwright.containers.registry import container_of, require_suffix
from bitwright.data.tokenizer import tokenizer_of
from bitwright.errors import fail, in_one_line
from bitwright.finetune.answers import Answers, of_files
from bitwright.finetune.texts import Texts, texts_of
from bitwright.finetune.training import Training
from bitwright.host.device import device_of
from bitwright.host.progress import Reporter
from bitwright.host.texts import read_object, record
from bitwright.models.open import auto_class
from bitwright.pipeline import quantize
from bitwright.settings import Settings

CHECKED = "loss of the merged file"
PROCESSOR = ("preprocessor_config.json", "processor_config.json", "chat_template.jinja")  # of models that see
LEAST_KEPT = 0.9  # share of the improvement that a merge has to keep
FEWEST = 24  # texts of calibration; where there are fewer, they are mixed with the usual ones


@dataclass(frozen=True)
class Merged:
    """Answers to the texts that training kept apart: before it, with the adapter, and of the written file."""

    before: Answers
    adapter: Answers
    merged: Answers

    @property
    def kept(self) -> float:
        """Share of the gain that survived."""
        return self.merged.share_of(self.before, self.adapter)


def merge(
    adapter: str | Path,
    source: str | Path,
    data: str,
    out: str | Path,
    budget: str = "+10%",
    *,
    settings: Settings | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Merged:
    """Put ``adapter`` into the 16-bit model ``source``, and quantize the whole anew.

    Args:
        adapter: What ``finetune`` wrote.
        source: The 16-bit model that it was trained for.
        data: The file that it was trained on; it calibrates the rounding.
        out: The checkpoint to create.
        budget: As of ``quantize``.
        settings: As of ``quantize``; its ``container`` says for whom.
        overwrite: Replace a checkpoint at ``out`` that Bitwright wrote.
        reporter: Shows progress. Default: on the terminal.

    Returns:
        Answers to the kept texts before training, with the adapter, and of the written file.

    Raises:
        BitwrightError: The written file keeps less than LEAST_KEPT of what training gained. Nothing is at ``out`` then, or what
            was there before.

    Example:
        >>> bitwright.merge("adapter", "demo", "questions.csv", "tuned").kept  # doctest: +SKIP
        0.97
    """
    settings, reporter, out, adapter = settings or Settings(), reporter or Reporter(), Path(out), Path(adapter)
    training, before, after = _told(adapter)
    work_root = out.absolute().parent / f".{out.name}.merge"
    container = container_of(settings.container)
    require_suffix(out, container)
    with Output(out, bool(container.suffix), overwrite).claimed() as claim, owned(work_root, out, ours=True):
        whole, made = work_root / "source" / "merged", work_root / "made" / out.name
        directory = local_directory(source)
        tokenizer = tokenizer_of(directory)
        texts = texts_of(data, directory, tokenizer, training)
        write_merged(directory, adapter, whole)
        tokenizer.save_pretrained(str(whole))
        for file in (directory / name for name in PROCESSOR if (directory / name).exists()):
            shutil.copyfile(file, whole / file.name)
        own = replace(settings, calibration=_calibration(texts, tokenizer, work_root) or settings.calibration)
        made.parent.mkdir(parents=True, exist_ok=True)
        quantize(whole, made, budget, settings=own, overwrite=True, reporter=reporter)
        device = device_of(training.device)
        (merged,) = of_files(whole, [made], texts.kept, device, work_root, reporter, CHECKED)
        found = Merged(before, after, merged)
        loses = bool(texts.kept) and not found.kept >= LEAST_KEPT
        if not loses:
            with claim.made() as place:
                for path in (made.parent if container.suffix else made).iterdir():
                    path.rename((place.parent if container.suffix else place) / path.name)
    shutil.rmtree(work_root, ignore_errors=True)
    if loses:
        raise fail(
            "finetune/merge-loses",
            out,
            saw=f"the file keeps {100 * found.kept:.0f} % of what training gained: {_told_of(found)}",
            wanted=f"at least {100 * LEAST_KEPT:.0f} %",
            help="bitwright finetune --method qat trains what will be written; a larger --budget keeps more",
        )
    return found


def write_merged(source: Path, adapter: Path, out: Path) -> None:
    """The 16-bit model at ``source`` with the change of ``adapter`` in its weights, computed in float32."""
    from peft import PeftModel

    base: Any = auto_class(AutoConfig.from_pretrained(source)).from_pretrained(source, dtype=torch.float32)
    PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().to(torch.bfloat16).save_pretrained(out)


def _told_of(found: Merged) -> str:
    parts = {"before": found.before, "with the adapter": found.adapter, "merged": found.merged}
    return ", ".join(f"{name} {one.loss:.3f} nats and {100 * one.right:.0f} % right" for name, one in parts.items())


def _told(adapter: Path) -> tuple[Training, Answers, Answers]:
    """What ``finetune`` noted of an adapter: how it was trained, and the answers before and after; NaN without kept texts."""
    try:
        told = read_object(adapter / PROOF)
        listed = {name: tuple(told["training"][name]) for name in ("targets", "train")}
        training = record(Training, told["training"] | listed)
        before, after = (_answers(told["outcome"][name]) for name in ("before", "after"))
    except (ValueError, KeyError, TypeError) as error:
        raise fail(
            "finetune/adapter",
            adapter,
            saw=f"no adapter that Bitwright wrote: {in_one_line(error)}",
            wanted=f"a directory with {PROOF} beside adapter_model.safetensors",
            help="bitwright finetune MODEL DATA ADAPTER",
        ) from None
    if after.loss >= before.loss:
        raise fail(
            "finetune/no-gain",
            adapter,
            saw=f"training gained nothing: {before.loss:.3f} nats before, {after.loss:.3f} after",
            wanted="an adapter that lowers the loss on kept texts",
            help="train longer, or with another --learning-rate",
        )
    return training, before, after


def _answers(told: dict[str, float | None]) -> Answers:
    loss, right = (math.nan if told[name] is None else float(str(told[name])) for name in ("loss", "right"))
    return Answers(loss, right)


def _calibration(texts: Texts, tokenizer: Any, folder: Path) -> str:
    """A file with the texts that were learnt from; nothing where they have images, or are too few to calibrate on alone."""
    learnt = texts.learnt
    if texts.pictured or len(learnt) < FEWEST:
        return ""
    path = folder / "texts.jsonl"
    rows = (json.dumps({"text": tokenizer.decode(example.ids)}) for example in learnt)
    path.write_text("\n".join(rows), encoding="utf-8")
    return str(path)
