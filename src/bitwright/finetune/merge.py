"""An adapter becomes part of a quantized file: merged into the 16-bit model, which is rounded anew with what was learnt.

Merging into 4-bit weights erases a change (a change of 1 % moves hardly any code), so that is not offered. Whether the change
survived is measured twice: in the weights that were written, and on the texts that training kept apart, by the file's runtime.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from bitwright.checkpoint.open import local_directory
from bitwright.checkpoint.output import PROOF, TRAINED_BESIDE, Output, atomic_output, beside, owned, write_json, write_text
from bitwright.checkpoint.result import plan_of
from bitwright.checkpoint.workdir import finite
from bitwright.containers.registry import container_of, require_suffix
from bitwright.data.tokenizer import tokenizer_of
from bitwright.errors import fail, in_one_line
from bitwright.finetune.answers import LEAST_KEPT, Answers, by_program
from bitwright.finetune.card import merged_section
from bitwright.finetune.finished import Finished
from bitwright.finetune.survival import changes_in, moved, survived
from bitwright.finetune.texts import Texts, texts_of
from bitwright.finetune.train import CONFIG
from bitwright.finetune.training import TEXTS, Training
from bitwright.host.device import device_of
from bitwright.host.progress import Reporter
from bitwright.host.texts import read_object, record
from bitwright.measure.subject import Subject
from bitwright.models.open import auto_class
from bitwright.pipeline import quantize
from bitwright.plan import Plan
from bitwright.report.card import tuned
from bitwright.settings import Settings

CHECKED = "loss of the merged file"
BESIDE_WEIGHTS = (  # what a model has beside them and its tokenizer: of one that sees, of what it says, of its licence
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "README.md",
    "LICENSE",
)
FEWEST = 24  # texts of calibration; where there are fewer, the usual ones are taken
BUDGET = "+10%"  # where no plan is known
PLAN = "plan.json"  # whose formats are kept


@dataclass(frozen=True)
class Merged:
    """Answers to the texts that training kept apart: before it, with the adapter, and of the written file.

    ``survived``: share of the change that is in the written weights. ``moved``: share of the codes that are others than in the
    checkpoint that the adapter was trained beside, NaN where its formats are not kept.
    """

    before: Answers
    adapter: Answers
    merged: Answers
    survived: float
    moved: float

    @property
    def kept(self) -> float:
        """Share of the gain that survived."""
        return self.merged.share_of(self.before, self.adapter)


def merge(
    adapter: str | Path,
    source: str | Path,
    data: str,
    out: str | Path,
    budget: str = "",
    *,
    plan: str | Path = "",
    whole: str | Path = "",
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
        budget: As of ``quantize``. Without it the formats stay those of ``plan``, or it is BUDGET.
        plan: A checkpoint of ours or a plan.json whose formats are kept. Default: the checkpoint that the adapter was trained
            beside, where that is of the same container and lies beside the adapter, or where we stand.
        whole: Where to keep the merged 16-bit model, which ``repair`` and more training need.
        settings: As of ``quantize``; its ``container`` says for whom.
        overwrite: Replace a checkpoint at ``out`` that Bitwright wrote.
        reporter: Shows progress. Default: on the terminal.

    Returns:
        Answers to the kept texts before training, with the adapter, and of the written file; what of the change is in it.

    Raises:
        BitwrightError: The written file keeps less than LEAST_KEPT of what training gained, or ``data`` is not what was learnt.
            Nothing is at ``out`` then, or what was there before.

    Example:
        >>> bitwright.merge("adapter", "demo", "questions.csv", "tuned").kept  # doctest: +SKIP
        0.97
    """
    settings, reporter, out, adapter = settings or Settings(), reporter or Reporter(), Path(out), Path(adapter)
    told = _Told.of(adapter)
    work_root = out.absolute().parent / f".{out.name}.merge"
    container = container_of(settings.container)
    require_suffix(out, container)
    if budget and plan:
        saw, help = f"--budget {budget} and --plan {plan}", "leave out one of them"
        raise fail("finetune/unused", "merge", saw=saw, wanted="a budget or the formats of a plan", help=help)
    like = None if budget else _like(adapter, plan, settings.container)
    if not budget and like is None:
        reporter.say(
            f"note: formats are chosen anew, at {BUDGET}; --plan CHECKPOINT keeps those of the one that was trained beside"
        )
    with Output(out, bool(container.suffix), overwrite).claimed() as claim, owned(work_root, out, ours=True):
        directory = local_directory(source)
        tokenizer = tokenizer_of(directory)
        texts = texts_of(data, directory, tokenizer, told.training)
        told.require_same(texts, data)
        if not texts.kept:
            reporter.say("note: no texts were kept apart, so nothing says whether the file answers as the adapter does")
        place = Path(whole) if whole else _emptied(work_root / "source" / "merged")
        with atomic_output(place, False) as empty:
            write_merged(directory, adapter, tokenizer, empty)
        made = work_root / "made" / out.name
        made.parent.mkdir(parents=True, exist_ok=True)
        own = replace(settings, calibration=_calibration(texts, tokenizer, work_root) or settings.calibration)
        if like:
            own = replace(own, fused_groups=like.fused_groups)
            write_text(work_root / PLAN, like.to_json())
        kept = work_root / PLAN if like else None
        quantize(place, made, budget or BUDGET, plan=kept, settings=own, overwrite=True, reporter=reporter)
        device = device_of(told.training.device)
        merged = by_program(made, texts.kept, device, work_root, reporter, CHECKED, reference=place)
        finished = Finished.open(made, str(place), own)
        held = survived(changes_in(adapter), finished, Subject.open(directory, own).source)
        found = Merged(told.before, told.after, merged, held, _moved(adapter, plan, finished))
        loses = bool(texts.kept) and not found.kept >= LEAST_KEPT
        if not loses:
            _tell(made, str(source), data, told.training, found)
            with claim.made() as target:
                for path in (made.parent if container.suffix else made).iterdir():
                    path.rename((target.parent if container.suffix else target) / path.name)
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


def _emptied(folder: Path) -> Path:
    """``folder``, which may be made now: what a killed run left there is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _like(adapter: Path, plan: str | Path, container: str) -> Plan | None:
    """The plan whose formats are kept; none where none is named and the adapter was trained beside another kind of file."""
    if plan:
        path = Path(plan)
        return plan_of(path) if beside(path, PROOF).exists() else Plan.load(path)
    base = _base_of(adapter)
    return plan_of(base) if base and plan_of(base).container == container else None


def _base_of(adapter: Path) -> Path | None:
    """The checkpoint of ours that ``adapter`` was trained beside: where PEFT finds it, by the adapter, or where we stand."""
    name = str(read_object(adapter / PROOF).get(TRAINED_BESIDE, ""))
    places = [Path(str(read_object(adapter / CONFIG).get("base_model_name_or_path", "")))]
    places += [folder / name for folder in (adapter.absolute().parent, Path.cwd()) if name]
    return next((place for place in places if place.name and beside(place, PROOF).exists()), None)


def _moved(adapter: Path, plan: str | Path, finished: Finished) -> float:
    """Share of the codes that are others than in the checkpoint that training began with."""
    base = Path(plan) if plan and beside(Path(plan), PROOF).exists() else _base_of(adapter)
    if base is None or plan_of(base).container != finished.plan.container:
        return math.nan
    weights = finished.subject.source.spec.weights
    return moved(finished.subject.container.read(base, weights), finished.packed)


def write_merged(source: Path, adapter: Path, tokenizer: Any, out: Path) -> None:
    """The 16-bit model at ``source`` with the change of ``adapter`` in its weights, computed in float32, and all that goes with
    it."""
    from peft import PeftModel

    base: Any = auto_class(AutoConfig.from_pretrained(source)).from_pretrained(source, dtype=torch.float32)
    PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(str(out))
    for file in (source / name for name in BESIDE_WEIGHTS if (source / name).exists()):
        shutil.copyfile(file, out / file.name)


def _tell(made: Path, source: str, data: str, training: Training, found: Merged) -> None:
    """Note beside the weights what was learnt, and what of it is in them."""
    proof, card = beside(made, PROOF), beside(made, "README.md")
    write_json(proof, finite(read_object(proof) | {"training": training.told(), "merged": asdict(found)}))
    if card.exists():
        text = tuned(card.read_text(encoding="utf-8"), source)
        write_text(card, text + merged_section(source, data, training, found))


def _told_of(found: Merged) -> str:
    parts = {"before": found.before, "with the adapter": found.adapter, "merged": found.merged}
    return ", ".join(f"{name} {one.loss:.3f} nats and {100 * one.right:.0f} % right" for name, one in parts.items())


@dataclass(frozen=True)
class _Told:
    """What ``finetune`` noted of an adapter: how it was trained, on which texts, and the answers before and after."""

    training: Training
    texts: str  # their hash; empty where none was noted
    before: Answers
    after: Answers

    @classmethod
    def of(cls, adapter: Path) -> _Told:
        """Raises BitwrightError for a directory that is none of ours, and for an adapter that has learnt nothing."""
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
        return cls(training, str(told.get(TEXTS, "")), before, after)

    def require_same(self, texts: Texts, data: str) -> None:
        """Raise BitwrightError where ``texts`` are not those that were learnt: what was kept apart would be others, too."""
        if self.texts and self.texts != texts.key():
            raise fail(
                "finetune/other-data",
                data,
                saw="other texts than those that the adapter has learnt",
                wanted="the file that it was trained on, as it was then",
                help="name that file, or train again on this one",
            )


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
