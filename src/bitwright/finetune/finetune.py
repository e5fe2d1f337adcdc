"""Fine-tuning on one page: read, tokenize, check, adapt, train, hold against texts that were kept apart, write."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bitwright.checkpoint.demo import DEMO_MODEL
from bitwright.checkpoint.open import local_directory
from bitwright.checkpoint.output import PROOF, Output, owned, write_json
from bitwright.checkpoint.workdir import content_hash, finite
from bitwright.data.tokenizer import tokenizer_of
from bitwright.errors import fail
from bitwright.finetune.conversations import conversations
from bitwright.finetune.model import adapt, ends_of, load, require_trainable
from bitwright.finetune.preview import require_no_mistake, summary
from bitwright.finetune.tables import read_table
from bitwright.finetune.tokens import Example, examples
from bitwright.finetune.train import TRAIN, loss_of, packed, train, write_adapter
from bitwright.host.device import device_of, precision_of
from bitwright.host.packages import require_package
from bitwright.host.places import without_place
from bitwright.host.progress import Reporter
from bitwright.host.versions import versions

BEFORE, AFTER = "loss before", "loss after"


@dataclass(frozen=True)
class Training:
    """What a fine-tuning is asked for. Names and defaults are those of the command line."""

    targets: tuple[str, ...] = ("*",)
    rank: int = 16
    alpha: float = 16.0
    rslora: bool = False
    length: int = 1024  # tokens of a text
    batch: int = 4  # texts of a pass
    accumulate: int = 1  # passes of a step
    learning_rate: float = 2e-4
    epochs: float = 1.0
    max_steps: int = 0  # 0: by epochs
    held_out: float = 0.05  # share of the texts that are kept apart
    template: str = ""
    answer: str = ""
    sheet: str = ""
    rows_together: int = 1
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Outcome:
    """What came of it. Losses in nats per answer token, on texts that were kept apart."""

    loss_before: float
    loss_after: float
    steps: int
    losses: tuple[tuple[int, float], ...]  # of the texts that were learnt from, by step
    n_trained: int  # parameters
    n_texts: int
    seconds: float


@dataclass(frozen=True)
class Texts:
    """All examples, those to learn from and those that are kept apart, and how the columns were read."""

    every: list[Example]
    learnt: list[Example]
    kept: list[Example]
    words: str
    n_doubles: int  # rows of the kept texts that were among the others, and were left out there


def texts_of(data: str, tokenizer: Any, training: Training) -> Texts:
    """Read ``data`` and cut it by rows, the same way for the same seed; doubles across the cut stay on one side."""
    talks, words = conversations(read_table(data, training.sheet), training.template, training.answer, training.rows_together)
    found = examples(talks, tokenizer, training.length)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(training.seed)).tolist()
    n_kept = min(len(found) - 1, max(1, math.ceil(training.held_out * len(found)))) if training.held_out else 0
    kept = [found[i] for i in order[:n_kept] if found[i].n_labels]
    known = {tuple(example.ids.tolist()) for example in kept}
    rest = [found[i] for i in order[n_kept:]]
    learnt = [example for example in rest if example.n_labels and tuple(example.ids.tolist()) not in known]
    doubles = sum(tuple(example.ids.tolist()) in known for example in rest)
    return Texts(found, learnt, kept, words, doubles)


def require_sound(texts: Texts, path: Path, tokenizer: Any, length: int) -> None:
    """Raise BitwrightError for examples that nothing can be learnt from by the model at ``path``."""
    require_no_mistake(texts.every, tokenizer, ends_of(path, tokenizer), length)
    if not texts.learnt:
        raise fail(
            "finetune/all-kept",
            "the examples",
            saw=f"none is left to learn from: {texts.n_doubles} are equal to texts that are kept apart",
            wanted="different texts",
            help="--held-out 0, or more rows",
        )


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
    """Train a low-rank adapter for ``model`` on ``data`` and write it to the directory ``out``, as stock PEFT reads it.

    ``model``: a 16-bit model, or a bitsandbytes checkpoint in 4 bits, whose weights stay packed. A killed run goes on from its
    last checkpoint in ``workdir``. Raises BitwrightError, before anything slow, for data that nothing can be learnt from.
    """
    training, reporter, out = training or Training(), reporter or Reporter(), Path(out)
    started = time.monotonic()
    require_package("finetune/package", "the adapter", "peft", "it writes and loads adapters")
    path = local_directory(model)
    require_trainable(path)
    base = base_of(model)
    work_root = Path(workdir) if workdir else out.absolute().parent / f".{out.name}.work"
    with Output(out, False, overwrite).claimed() as claim, owned(work_root, out, ours=not workdir):
        tokenizer = tokenizer_of(path)
        texts = texts_of(data, tokenizer, training)
        device = device_of(training.device)
        work = precision_of(training.dtype, device).work
        require_sound(texts, path, tokenizer, training.length)
        for line in told_of(texts, training):
            reporter.say(line)
        torch.manual_seed(training.seed)
        ready = load(path, device, work)
        names = adapt(ready, training.targets, training.rank, training.alpha, training.rslora)
        reporter.kept = work_root
        reporter.plan({BEFORE: len(texts.kept), TRAIN: _passes(training, len(texts.learnt)), AFTER: len(texts.kept)})
        before = held(ready, texts.kept, training.batch, reporter, BEFORE)
        folder = work_root / _key(path, texts, training, work)
        losses = train(ready, texts.learnt, packed, folder, reporter, **settings_of(training))
        after = held(ready, texts.kept, training.batch, reporter, AFTER)
        outcome = Outcome(
            before,
            after,
            losses[-1][0],
            losses,
            sum(p.numel() for p in ready.parameters() if p.requires_grad),
            len(texts.learnt),
            round(time.monotonic() - started, 1),
        )
        with claim.made() as place:
            write_adapter(place, ready, base, names, training.rank, training.alpha, training.rslora)
            proof = {"adapter_of": without_place(base), "training": asdict(training), "outcome": asdict(outcome)}
            write_json(place / PROOF, finite(proof))
            tokenizer.save_pretrained(str(place))
        if not workdir:
            shutil.rmtree(work_root, ignore_errors=True)
        return outcome


def base_of(model: str | Path) -> str:
    """The name under which others load what an adapter was trained for."""
    return DEMO_MODEL if str(model) == "demo" else str(model)


def told_of(texts: Texts, training: Training) -> list[str]:
    """What a person should know of the examples before they are learnt."""
    lines = [f"read as {texts.words}", *summary(texts.every, training.length)]
    if texts.n_doubles:
        lines.append(f"{texts.n_doubles} texts are equal to kept ones and are not learnt from")
    return lines


def _passes(training: Training, n_texts: int) -> float:
    """What training costs, in texts that are only read: forward, again, and backward."""
    read = training.max_steps * training.batch * training.accumulate or training.epochs * n_texts
    return 4.0 * read


def _key(path: Path, texts: Texts, training: Training, work: torch.dtype) -> str:
    """Hash of everything that a training depends on: checkpoints of another one are not gone on from."""
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(path.glob("*.safetensors"))]
    learnt = [example.ids.tolist() + example.labels.tolist() for example in texts.learnt]
    return content_hash(str(path.resolve()), files, learnt, asdict(training), str(work), versions())


def settings_of(training: Training) -> dict[str, Any]:
    """The same in the words of transformers' Trainer."""
    return {
        "per_device_train_batch_size": training.batch,
        "gradient_accumulation_steps": training.accumulate,
        "learning_rate": training.learning_rate,
        "num_train_epochs": training.epochs,
        "max_steps": training.max_steps or -1,
        "seed": training.seed,
    }


def held(model: Any, kept: list[Example], batch: int, reporter: Reporter, stage: str) -> float:
    """Mean loss of the kept texts, in nats per answer token; NaN where none were kept."""
    total, count, device = 0.0, 0, next(model.parameters()).device
    model.eval()
    parts = [kept[start : start + batch] for start in range(0, len(kept), batch)]
    for part in reporter.track(parts, stage, len(parts)):
        inputs = {name: tensor.to(device) for name, tensor in packed(part).items()}
        labels = sum(example.n_labels for example in part)
        with torch.no_grad():
            total += float(loss_of(model, inputs, 1))
        count += labels
    return total / count if count else math.nan
