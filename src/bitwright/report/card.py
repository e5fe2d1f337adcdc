"""README.md beside the weights: the model card that the hub shows, with its metadata block and the report's figures."""

from __future__ import annotations

import base64
import re
from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bitwright.checkpoint.demo import DEMO_LICENSE, DEMO_MODEL
from bitwright.containers.registry import container_of
from bitwright.doctor.model import Model
from bitwright.errors import printable
from bitwright.plan import NOISE_FLOOR
from bitwright.report.report import Report, sees, sentences
from bitwright.report.said import Said
from bitwright.report.seen import shown_as

DEMOS = ("demo", "demo-vision")
TAKEN_OVER = ("license", "license_name", "license_link", "language")  # from the source's own card

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
MARKUP = re.compile(r"[\\`*_{}\[\]<>()#|!~]")
UNSAFE_IN_CODE = re.compile(r"[^\w.+\- ]")
PLAIN = re.compile(r"[\w.:/ -]+")  # a licence, a language, a link


def card(report: Report, source: str, directory: Path) -> str:
    """The card of what ``report`` is about, quantized from the model ``source`` whose files lie in ``directory``."""
    data = metadata(report, source, directory)
    return f"---\n{data.to_yaml()}\n---\n\n{_text(report, data, _is_chat(directory))}"


def metadata(report: Report, source: str, directory: Path) -> ModelCardData:
    """The hub's metadata: what it was made from, under which licence, and how it measures."""
    known = {"license": DEMO_LICENSE, "base_model": DEMO_MODEL} if source in DEMOS else _of_source(directory)
    if _is_hub_id(source):
        known["base_model"] = source
    found, held_out = report.result.divergence, report.provenance["held_out"]
    name = Path(report.out).name
    task = "image-text-to-text" if sees(report) else "text-generation"
    text: dict[str, Any] = {"task_type": task, "dataset_type": "text", "dataset_name": Path(held_out["source"]).name}
    figures = [
        ("kl_divergence", "KL divergence from the 16-bit model, nats per token", found.kl),
        ("top1_agreement", "same next token as the 16-bit model", found.top1),
        ("perplexity", "perplexity", found.perplexity),
    ]
    container = container_of(report.plan.container)
    return ModelCardData(
        **known,
        base_model_relation="quantized" if "base_model" in known else None,
        pipeline_tag=task,
        library_name=container.library,
        model_name=name,
        tags=["bitwright", *container.tags],
        eval_results=[
            EvalResult(**text, metric_type=kind, metric_name=words, metric_value=round(value, 5))
            for kind, words, value in figures
        ],
    )


def tuned(text: str, source: str) -> str:
    """The card ``text`` of what was trained from ``source`` before it was quantized, where that is a model of the hub."""
    base = DEMO_MODEL if source in DEMOS else source if _is_hub_id(source) else ""
    if not base:
        return text
    card = ModelCard(text, ignore_metadata_errors=True)
    card.data["base_model"], card.data["base_model_relation"] = base, "finetune"
    return str(card)


def _of_source(directory: Path) -> dict[str, Any]:
    path = directory / "README.md"
    if not path.is_file():
        return {}
    try:
        known = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # noqa: BLE001 - a card that cannot be read says nothing; the card is no reason to lose a run
        return {}
    found = {name: _words(known.get(name)) for name in TAKEN_OVER}
    return {name: words for name, words in found.items() if words}


def _words(value: Any) -> str | list[str] | None:
    """Plain words of a card, or none: what else stands there is not ours to repeat."""
    if isinstance(value, list):
        found = [word for word in map(_words, value) if isinstance(word, str)]
        return found or None
    if value is False:
        return "no"  # Norwegian, as YAML reads it
    return value if isinstance(value, str) and PLAIN.fullmatch(value) else None


def _is_hub_id(source: str) -> bool:
    """Whether ``source`` is the hub's ``owner/name`` and not a path. What a config remembers is often a parent, or a path."""
    return HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def _is_chat(directory: Path) -> bool:
    return Model(directory).template is not None


def _text(report: Report, data: ModelCardData, chat: bool) -> str:
    gained, done, trust = sentences(report)
    of_text = report.provenance["calibration"]
    of = f" of {data.base_model}" if data.base_model else ""
    formats = Counter(choice.format for choice in report.plan.choices)
    rows = "\n".join(f"| {name} | {count} |" for name, count in formats.most_common())
    return f"""# {_plain(Path(report.out).name)}

A quantized copy{of}, made and measured by [Bitwright](https://pypi.org/project/bitwright/). {gained}

{_figures(report)}

{trust}
{_seen(report)}{_said(report)}
## Use

{container_of(report.plan.container).usage(_in_code(Path(report.out).name), chat, sees(report))}

## What is in it

{done}

| stored in | weights |
|---|---|
{rows}

`{_in_code(_beside(report, "report.html"))}` shows every weight, the format it got and why;
`{_in_code(_beside(report, "report.json"))}` holds the same figures for programs. Calibrated on {_plain(of_text)}
({report.provenance["sequences"]} sequences of {report.provenance["length"]} tokens, seed {report.provenance["seed"]}).

## Limits

A quantized model has the abilities, the biases and the licence of the model it was made from, and is a little further from
it than the figures of one text can say: they were measured on {_plain(Path(report.provenance["held_out"]["source"]).name)}.
"""


def _plain(text: str) -> str:
    """Words that a person or a file chose, as Markdown that shows them and nothing else."""
    return MARKUP.sub(r"\\\g<0>", " ".join(printable(text).split()))


def _in_code(name: str) -> str:
    """A name inside code: what could end the code or a string in it is left out."""
    return UNSAFE_IN_CODE.sub("", printable(name))


def _figures(report: Report) -> str:
    lines = ["| | MB | KL, nats/token | 95 % interval | same next token | perplexity |", "|---|---|---|---|---|---|"]
    for entry in report.verdict.entries:
        if entry.label in (report.verdict.shipped, report.verdict.stock, NOISE_FLOOR):
            d = entry.divergence
            name = "**this model**" if entry.label == report.verdict.shipped else entry.label
            lines.append(
                f"| {name} | {entry.nbytes / 1e6:.1f} | {d.kl:.4f} | {d.kl_low:.4f}–{d.kl_high:.4f} | {100 * d.top1:.1f} % "
                f"| {d.perplexity:.2f} |"
            )
    return "\n".join(lines)


def _seen(report: Report) -> str:
    """Pictures and answers; the pictures are files beside the card, by ``picture_files``."""
    pairs = list(zip(picture_files(report), report.seen, strict=True))
    rows = [
        ([f"![]({name})", _plain(seen.question)], {who: _plain(a) for who, a in seen.answers.items()}) for name, seen in pairs
    ]
    return _answers(report, ["picture", "question"], rows)


def _said(report: Report) -> str:
    """Questions and answers; bold is what follows the first difference from the 16-bit model."""
    rows = [([_plain(one.question)], {who: _marked(one, who) for who in one.answers}) for one in report.said]
    note = "\nEach with its likeliest words; bold is what follows the first difference from the 16-bit model.\n"
    return _answers(report, ["question"], rows) + (note if rows else "")  # no times: the same run writes the same card


def _answers(report: Report, titles: list[str], rows: list[tuple[list[str], dict[str, str]]]) -> str:
    """A table of first cells and of what each contender that is shown answered; nothing without rows."""
    if not rows:
        return ""
    labels = [label for label in report.shown_labels if label in rows[0][1]]
    names = ["**this model**" if label == report.verdict.shipped else shown_as(label) for label in labels]
    lines = [f"| {' | '.join((*titles, *names))} |", "|---" * (len(titles) + len(names)) + "|"]
    lines += [f"| {' | '.join((*cells, *(said[label] or '–' for label in labels)))} |" for cells, said in rows]
    return "\n" + "\n".join(lines) + "\n"


def _marked(one: Said, label: str) -> str:
    same, rest = (_plain(part) for part in one.apart(label))
    return " ".join(part for part in (same, f"**{rest}**" if rest else "") if part)


def picture_files(report: Report) -> dict[str, bytes]:
    """The pictures that the card shows, by the names of their files."""
    return {_in_code(_beside(report, f"picture-{i}.png")): base64.b64decode(seen.png) for i, seen in enumerate(report.seen, 1)}


def _beside(report: Report, name: str) -> str:
    out = Path(report.out)
    return f"{out.stem}.{name}" if container_of(report.plan.container).suffix else name
