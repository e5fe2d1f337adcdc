"""python -m benchmarks.small_vlm — train the eyes of the demo model that sees, and report how well it sees.

The model is of the Idefics3 class: SmolLM2-135M-Instruct, a small vision tower and a connector, both trained here from nothing
on easy-VQA (MIT licence, from the package index) and on drawings. First the tower learns to say what is in a picture: each
image token is to be the embedding of one word of the caption. Then tower, connector and a low-rank change of the text's query
and value projections learn from questions and answers, through the text model, whose other weights do not move.

Several questions about one picture share a sequence: each attends to the picture and to itself alone. ``--stages`` runs
some of the parts.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bitwright.checkpoint import demo_vision
from bitwright.checkpoint.cached import sha256
from bitwright.checkpoint.open import local_directory
from bitwright.data.pictures import COLOURS, KINDS, SHAPES, WORDS, Scene, scenes
from bitwright.host.places import cache_dir

EASY_VQA = "easy-vqa==1.0"
EASY_VQA_SHA256 = "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
NO_BLANK_BEFORE = frozenset([".", *map(str, range(100))])
EASY_WORDS = ("rectangle", "teal", "brown", "gray")
RATE_OF_CHANGES, SHARE_OF_NAMES = 1e-3, 0.05
LINES, WORDS_A_LINE = 4, 4  # of a caption: one word for each image token
RANK = 8
TRAINING_SEED, TEST_SEED = 10_000, 6_000
WARM_UP = 100  # steps
ADAPTED = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Stage:
    """A part of the training. Without ``questions`` it learns from captions, through the tower alone."""

    minutes: float
    batch: int  # pictures
    rate: float  # of tower and connector
    seed: int
    questions: int = 0  # of each picture, at most
    easy: float = 0.2  # share of easy-VQA's pictures
    kinds: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))  # of drawings, by share


HARD = {"shape": 0.5, "count": 2.0, "word": 4.0, "chart": 2.0, "table": 1.0}
SCHEDULE = (
    Stage(10, 64, 1e-3, 0),
    Stage(45, 8, 3e-4, 10_000_000, questions=6),
    Stage(20, 64, 1e-3, 20_000_000, easy=0.1, kinds=HARD),
    Stage(12, 8, 3e-4, 30_000_000, questions=6, kinds=HARD),
)


@dataclass(frozen=True)
class Shown:
    """A picture as the tower takes it, the tokens of its caption, and token ids of questions with their answers."""

    pixels: np.ndarray  # [3, side, side], uint8
    caption: list[int]
    questions: list[tuple[str, list[int], list[int]]]  # task, question up to where the answer begins, answer


class LowRank(nn.Module):
    """A frozen linear and a change of low rank."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.linear(x) + (x @ self.down.T) @ self.up.T
        return changed


class Student:
    """The whole model with its tokenizer, and the parts of it that learn."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoProcessor, Idefics3ForConditionalGeneration

        self.model = Idefics3ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
        self.model.requires_grad_(False)
        self.inner = self.model.model
        self.tokenizer: Any = AutoProcessor.from_pretrained(directory, backend="pil").tokenizer
        self.embedding = self.inner.text_model.embed_tokens.weight
        self.side = self.model.config.vision_config.image_size
        self.prefix = self.ids("<|im_start|>user\n<fake_token_around_image><global-img>")
        self.image_tokens = LINES * WORDS_A_LINE
        self.suffix = self.ids("<fake_token_around_image>")
        self.eyes = nn.ModuleDict({"vision_model": self.inner.vision_model, "connector": self.inner.connector})
        self.eyes.requires_grad_(True)
        captions = " ".join([*COLOURS, *SHAPES, *WORDS, *EASY_WORDS, "highest", "lowest", *"ABCD", *ascii_lowercase])
        words = [t for word in captions.split() for t in self.ids(f" {word}")]
        self.words = torch.tensor(sorted({*words, *self.ids("0123456789."), *self.ids(" .")}))  # of captions
        self.changes: dict[str, LowRank] = {}
        for i, block in enumerate(self.inner.text_model.layers):
            for name in ADAPTED:
                changed = LowRank(getattr(block.self_attn, name), RANK)
                setattr(block.self_attn, name, changed)
                self.changes[f"model.layers.{i}.self_attn.{name}"] = changed

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return found

    def shown(self, image: Image.Image, caption: str, questions: list[tuple[str, str, str]]) -> Shown:
        pixels = np.asarray(image.convert("RGB").resize((self.side, self.side), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
        blank = self.ids(".")
        slots: list[int] = []
        for line in [*caption.split("\n"), *[""] * LINES][:LINES]:
            own = [t for word in line.split() for t in self.ids(word if word in NO_BLANK_BEFORE else f" {word}")]
            slots += (own + blank * WORDS_A_LINE)[:WORDS_A_LINE]
        asked = [
            (task, self.ids(f"{question}<|im_end|>\n<|im_start|>assistant\n"), self.ids(f"{answer}<|im_end|>"))
            for task, question, answer in questions
        ]
        return Shown(pixels, slots, asked)

    def features(self, pictures: list[Shown]) -> Tensor:
        """Embeddings of the image tokens, [pictures, image tokens, hidden]."""
        pixels = torch.from_numpy(np.stack([p.pixels for p in pictures])).float().div_(127.5).sub_(1)
        patch = self.model.config.vision_config.patch_size
        mask = torch.ones(len(pictures), self.side // patch, self.side // patch, dtype=torch.bool)
        seen = self.inner.vision_model(pixel_values=pixels, patch_attention_mask=mask).last_hidden_state
        features: Tensor = self.inner.connector(seen)
        return features

    def answers(self, pictures: list[Shown], features: Tensor) -> tuple[Tensor, Tensor, list[list[int]]]:
        """Logits at the answers, the tokens that are right, and for each question the places of its answer in them."""
        head = len(self.prefix) + self.image_tokens + len(self.suffix)
        length = head + max(sum(len(q) + len(a) - 1 for _, q, a in p.questions) for p in pictures)
        ids = torch.zeros(len(pictures), length, dtype=torch.long)
        at = torch.zeros(len(pictures), length, dtype=torch.long)
        owner = torch.full((len(pictures), length), -1)  # question of each token; 0: the picture, -1: none
        rows: list[int] = []
        places: list[int] = []
        right: list[int] = []
        spans: list[list[int]] = []
        for b, picture in enumerate(pictures):
            ids[b, :head] = torch.tensor([*self.prefix, *[0] * self.image_tokens, *self.suffix])
            at[b, :head], owner[b, :head] = torch.arange(head), 0
            start = head
            for n, (_, question, answer) in enumerate(picture.questions, 1):
                own = [*question, *answer[:-1]]
                end = start + len(own)
                ids[b, start:end], owner[b, start:end] = torch.tensor(own), n
                at[b, start:end] = head + torch.arange(len(own))
                spans.append(list(range(len(right), len(right) + len(answer))))
                places += range(end - len(answer), end)
                rows += [b] * len(answer)
                right += answer
                start = end
        same = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)
        allowed = same & torch.ones(length, length, dtype=torch.bool).tril()
        embedded = self.embedding[ids]
        first = len(self.prefix)
        embedded = torch.cat([embedded[:, :first], features, embedded[:, first + self.image_tokens :]], 1)
        mask = torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)[:, None]
        hidden = self.inner.text_model(inputs_embeds=embedded, attention_mask=mask, position_ids=at, use_cache=False)
        logits = hidden.last_hidden_state[rows, places] @ self.embedding.T
        return logits, torch.tensor(right), spans

    def named(self, features: Tensor, pictures: list[Shown]) -> Tensor:
        """How far the image tokens are from being the words of the caption."""
        captions = torch.tensor([p.caption for p in pictures])
        used = self.words
        logits = features @ self.embedding[used].T
        target = torch.searchsorted(used, captions)
        distance = (features - self.embedding[captions]).square().sum(-1).mean()
        return cross_entropy(logits.flatten(0, 1), target.flatten()) + 0.02 * distance

    def tensors(self) -> dict[str, Tensor]:
        """What was learned, in bfloat16, by the names of the checkpoint."""
        found = {f"model.{name}": p.data.bfloat16() for name, p in self.eyes.named_parameters()}
        for name, change in self.changes.items():
            found[f"{name}.down"], found[f"{name}.up"] = change.down.data.bfloat16(), change.up.data.bfloat16()
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def load(self, path: Path) -> None:
        stored = load_file(path)
        own = self.tensors_by_name()
        for name, tensor in stored.items():
            own[name].data.copy_(tensor)

    def tensors_by_name(self) -> dict[str, nn.Parameter]:
        found = {f"model.{name}": p for name, p in self.eyes.named_parameters()}
        for name, change in self.changes.items():
            found[f"{name}.down"], found[f"{name}.up"] = change.down, change.up
        return found


def easy_vqa() -> Path:
    """The wheel of easy-VQA, fetched once."""
    target = cache_dir() / "benchmarks" / "easy_vqa.whl"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, EASY_VQA]
            subprocess.run(command, check=True)
            wheel = next(Path(scratch).glob("*.whl"))
            if sha256(wheel) != EASY_VQA_SHA256:
                raise SystemExit(f"{EASY_VQA}: the wheel has another checksum")
            wheel.replace(target)
    return target


def easy_vqa_pictures(student: Student, part: str) -> list[Shown]:
    """All pictures of ``part`` (train, test) with their questions."""
    with zipfile.ZipFile(easy_vqa()) as archive:
        root = f"easy_vqa/data/{part}"
        about = defaultdict(list)
        for question, answer, number in json.loads(archive.read(f"{root}/questions.json")):
            about[number].append(("easy-vqa", question, answer))
        found = []
        for number, questions in about.items():
            image = Image.open(io.BytesIO(archive.read(f"{root}/images/{number}.png")))
            words = [answer for *_, answer in questions if answer not in ("yes", "no")]
            found.append(student.shown(image, " ".join(dict.fromkeys(words)), questions))
    return found


def drawings(student: Student, count: int, seed: int, kinds: Sequence[str] = KINDS) -> list[Shown]:
    def shown(scene: Scene) -> Shown:
        return student.shown(scene.image, scene.caption, list(scene.questions))

    return [shown(scene) for scene in scenes(count, seed, kinds)]


def teach(student: Student, stage: Stage, easy: list[Shown], out: Path) -> None:
    """Learn for the minutes of ``stage``, from pictures that are drawn anew for each step and from ``easy``."""
    chance = random.Random(stage.seed)
    groups = [{"params": list(student.eyes.parameters()), "rate": stage.rate}]
    if stage.questions:
        groups.append({"params": [p for c in student.changes.values() for p in (c.down, c.up)], "rate": RATE_OF_CHANGES})
    optimizer = torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.01)
    learning = [p for group in groups for p in group["params"]]
    seen, start, kept, losses = 0, time.monotonic(), time.monotonic(), []
    while (done := (time.monotonic() - start) / (60 * stage.minutes)) < 1:
        n_easy = sum(chance.random() < stage.easy for _ in range(stage.batch))
        kinds = chance.choices(list(stage.kinds), list(stage.kinds.values()), k=stage.batch - n_easy)
        own = drawings(student, len(kinds), TRAINING_SEED + stage.seed + seen, kinds) + chance.sample(easy, n_easy)
        features = student.features(own)
        loss = named = student.named(features, own)
        if stage.questions:
            asked = [replace(p, questions=chance.sample(p.questions, min(stage.questions, len(p.questions)))) for p in own]
            logits, right, _ = student.answers(asked, features)
            told = cross_entropy(logits, right)
            loss = told + SHARE_OF_NAMES * named
        losses.append((told if stage.questions else named).item())
        falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * min(1, (seen / stage.batch + 1) / WARM_UP) * falling
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        seen += stage.batch
        if time.monotonic() - kept > 60:
            kept = time.monotonic()
            print(f"{done:6.1%}  {seen} pictures  loss {np.mean(losses[-100:]):.4f}", flush=True)
            save_file(student.tensors(), out)
    save_file(student.tensors(), out)


@torch.no_grad()
def accuracy(student: Student, pictures: list[Shown]) -> dict[str, tuple[int, int]]:
    """By task: answers that greedy decoding gives word for word, and questions."""
    right: dict[str, list[bool]] = defaultdict(list)
    for i in range(0, len(pictures), 8):
        own = pictures[i : i + 8]
        logits, target, spans = student.answers(own, student.features(own))
        hit = logits.argmax(-1) == target
        tasks = [task for p in own for task, *_ in p.questions]
        for task, span in zip(tasks, spans, strict=True):
            right[task].append(bool(hit[span].all()))
    return {task: (sum(hits), len(hits)) for task, hits in right.items()}


def report(student: Student, count: int) -> None:
    found = accuracy(student, easy_vqa_pictures(student, "test")[:count])
    drawn = accuracy(student, drawings(student, count, TEST_SEED))
    for task, (hits, n) in (found | drawn).items():
        print(f"{task:10} {hits / n:7.1%}  of {n} questions about pictures that it never saw", flush=True)
    print(f"drawings   {np.mean([hits / n for hits, n in drawn.values()]):7.1%}  mean of the tasks")


def question_files(folder: Path, count: int) -> list[Path]:
    """Files for ``bitwright evaluate --tasks``, one a task: ``count`` questions each about pictures that training never saw."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)

    def keep(image: Image.Image, name: str, questions: Iterable[tuple[str, str, str]]) -> None:
        image.save(folder / name)
        for task, question, answer in questions:
            rows[task].append({"image": name, "question": question, "answer": answer})

    chance = random.Random(0)
    with zipfile.ZipFile(easy_vqa()) as archive:
        root = "easy_vqa/data/test"
        asked = json.loads(archive.read(f"{root}/questions.json"))
        for i, (question, answer, number) in enumerate(chance.sample(asked, count)):
            image = Image.open(io.BytesIO(archive.read(f"{root}/images/{number}.png")))
            keep(image, f"easy-{i}.png", [("easy-vqa", question, answer)])
    for i, scene in enumerate(scenes(5 * count, TEST_SEED)):
        keep(scene.image, f"drawn-{i}.png", scene.questions)
    for task, own in rows.items():
        chosen = own if len(own) <= count else chance.sample(own, count)
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return [folder / f"{task}.jsonl" for task in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--stages", default="0,1,2,3", help="of the schedule, by number; none: report alone")
    parser.add_argument("--test", type=int, default=1_000, help="pictures of each source to report on")
    parser.add_argument("--out", type=Path, default=Path("eyes.safetensors"), help="gone on from where it is there")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        student = Student(demo_vision.untrained(local_directory("demo"), Path(scratch) / "model"))
    if options.out.exists():
        student.load(options.out)
    easy = easy_vqa_pictures(student, "train")
    for number in filter(None, options.stages.split(",")):
        print(f"stage {number}", flush=True)
        teach(student, SCHEDULE[int(number)], easy, options.out)
    report(student, options.test)


if __name__ == "__main__":
    main()
