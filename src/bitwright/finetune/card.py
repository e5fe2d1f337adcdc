"""The model card of what was trained: on what, how, and what came of it (no torch)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.checkpoint.output import LOSSES, beside, write_text
from bitwright.errors import printable
from bitwright.finetune.training import IN_FORMAT, SCALES, Outcome, Training
from bitwright.host.places import without_place
from bitwright.report.losses import loss_picture

if TYPE_CHECKING:
    from bitwright.finetune.merge import Merged

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 40  # of the curve


def adapter_card(base: str, auto: str, data: str, training: Training, outcome: Outcome) -> str:
    """README.md of an adapter for ``base``, which ``auto`` of transformers loads, with the front matter that the hub reads."""
    head = f"---\nbase_model: {without_place(base)}\nlibrary_name: peft\ntags:\n- lora\n- bitwright\n---\n\n"
    use = (
        f"```python\nfrom peft import PeftModel\nfrom transformers import {auto}\n\n"
        f'model = PeftModel.from_pretrained({auto}.from_pretrained("{without_place(base)}"), "HERE")\n```\n'
    )
    return f"{head}# An adapter for {without_place(base)}\n\n{told(data, training, outcome)}\n## Use\n\n{use}"


def trained_section(data: str, training: Training, outcome: Outcome) -> str:
    """What is added to the card of a checkpoint whose codes were trained."""
    return f"\n## Trained\n\nThe figures above are of the checkpoint before. {told(data, training, outcome)}"


def merged_section(source: str, data: str, training: Training, found: Merged) -> str:
    """What is added to the card of a checkpoint that an adapter was merged into."""
    whole = f"{without_place(source)} with an adapter in its weights that had learnt from `{printable(without_place(data))}`"
    lines = [f"\n## Trained\n\nQuantized was {whole} ({training.method}, rank {training.rank}, seed {training.seed})."]
    if not math.isnan(found.survived):
        lines.append(f"{found.survived:.0%} of the change is in the written weights.")
    if math.isnan(found.merged.loss):
        return "\n".join(lines) + "\n"
    answers = (found.before, found.adapter, found.merged)
    lines.append("\n| on texts that were kept apart | before | with the adapter | this file |\n|---|---|---|---|")
    lines.append(f"| loss, nats per answer token | {' | '.join(f'{one.loss:.3f}' for one in answers)} |")
    lines.append(f"| answers right to the last token | {' | '.join(f'{one.right:.0%}' for one in answers)} |\n")
    return "\n".join(lines)


def told(data: str, training: Training, outcome: Outcome) -> str:
    """What was learnt from, with which settings, and what it changed."""
    name = printable(without_place(data))
    rank = "" if training.method == SCALES else f", rank {training.rank}" if training.rank else ", whole weights"
    lines = [
        f"Learnt from {outcome.n_texts:,} texts of `{name}` in {outcome.steps} steps "
        f"({training.method}{rank}, learning rate {training.learning_rate:g}, "
        f"{training.batch * training.accumulate} texts a step, seed {training.seed}).\n",
        f"Loss while training: {curve(outcome.losses)} nats.\n",
    ]
    if outcome.moved:
        lines.append(f"{outcome.moved:.1%} of the trained codes are others than before.\n")
    if not math.isnan(outcome.after.loss):
        lines.append("| on texts that were kept apart | before | after |\n|---|---|---|")
        lines.append(f"| loss, nats per answer token | {outcome.before.loss:.3f} | {outcome.after.loss:.3f} |")
        lines.append(f"| answers right to the last token | {outcome.before.right:.0%} | {outcome.after.right:.0%} |\n")
        lines.append(as_written(training, outcome))
    return "\n".join(lines)


def as_written(training: Training, outcome: Outcome) -> str:
    """How far what was written answers as it did in memory when its program loads it in a fresh process; or that none did."""
    if math.isnan(outcome.after.loss):
        return ""
    if (found := outcome.written) is None:
        return "These are answers of the model in memory: no program ran what was written.\n"
    one, other = found.by_program, found.in_memory
    beside = f"(in memory {other.loss:.3f}, {other.right:.0%})"
    if training.method in IN_FORMAT:
        return f"The answers after training are those of the file in a fresh process {beside}\n"
    return f"{found.n_texts} of them in a fresh process: {one.loss:.3f} nats, {one.right:.0%} right {beside}\n"


def draw_losses(model: Path, losses: tuple[tuple[int, float], ...]) -> str:
    """Draw ``losses`` beside ``model``; the picture as Markdown. Nothing where it cannot be: no training is lost to that."""
    place = beside(model, LOSSES)
    try:
        write_text(place, loss_picture(losses))
    except Exception:  # noqa: BLE001 - whatever the drawing raises
        return ""
    return f"\n![loss while training, by step]({place.name})\n"


def curve(losses: tuple[tuple[int, float], ...]) -> str:
    """The losses of a training as one line of bars, each the mean of as many steps.

    >>> curve(((1, 2.0), (2, 1.0), (3, 0.0)))
    '█▄▁ 2.000 to 0.000'
    """
    values = [loss for _, loss in losses]
    size = -(-len(values) // COLUMNS)
    means = [sum(part) / len(part) for part in (values[i : i + size] for i in range(0, len(values), size))]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[int((mean - low) * scale)] for mean in means) + f" {means[0]:.3f} to {means[-1]:.3f}"
