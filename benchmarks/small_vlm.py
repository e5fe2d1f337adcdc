"""python -m benchmarks.small_vlm — train the eyes of the demo model that sees, and report how well it sees.

The model is of the Idefics3 class: SmolLM2-135M-Instruct, a small vision tower and a connector, both trained here from nothing
on easy-VQA (MIT licence, from the package index) and on drawings. First the tower learns to say what is in a picture: each
image token is to be the embedding of one word of the caption. Then tower, connector and a low-rank change of the text's query
and value projections learn from questions and answers, through the text model, whose other weights do not move.

Several questions about one picture share a sequence: each attends to the picture and to itself alone. ``--stage`` runs one
part.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bitwright.checkpoint import demo_vision
from bitwright.checkpoint.open import local_directory
from bitwright.data.pictures import Scene, scenes
from bitwright.host.places import cache_dir

EASY_VQA = "easy-vqa==1.0"
EASY_VQA_SHA256 = "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
LINES, WORDS_A_LINE = 4, 4  # of a caption: one word for each image token
RANK = 8
TRAINING_SEED, TEST_SEED = 5_000, 6_000
WARM_UP = 100  # steps
EASY_VQA_SHARE = 3  # times that each of its pictures is shown when each drawing is shown once
ADAPTED = ("q_proj", "v_proj")


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
            own = [t for word in line.split() for t in self.ids(word if word.isdigit() else f" {word}")]
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
        used = torch.unique(torch.cat([captions.flatten(), self.vocabulary]))
        logits = features @ self.embedding[used].T
        target = torch.searchsorted(used, captions)
        distance = (features - self.embedding[captions]).square().sum(-1).mean()
        return cross_entropy(logits.flatten(0, 1), target.flatten()) + 0.02 * distance

    vocabulary: Tensor

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
            next(Path(scratch).glob("*.whl")).replace(target)
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


def drawings(student: Student, count: int, seed: int) -> list[Shown]:
    def shown(scene: Scene) -> Shown:
        return student.shown(scene.image, scene.caption, list(scene.questions))

    return [shown(scene) for scene in scenes(count, seed)]


def teach(
    student: Student, pictures: list[Shown], minutes: float, batch: int, rates: dict[str, float], questions: int, out: Path
) -> None:
    """Learn for ``minutes``; without ``questions`` from captions alone."""
    chance = random.Random(0)
    groups = [{"params": list(student.eyes.parameters()), "rate": rates["eyes"]}]
    if questions:
        groups.append({"params": [p for c in student.changes.values() for p in (c.down, c.up)], "rate": rates["changes"]})
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    learning = [p for group in groups for p in group["params"]]
    order: list[int] = []
    seen, start, kept, losses = 0, time.monotonic(), time.monotonic(), []
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        if len(order) < batch:
            order = chance.sample(range(len(pictures)), len(pictures))
        own = [pictures[order.pop()] for _ in range(batch)]
        features = student.features(own)
        loss = student.named(features, own)
        if questions:
            asked = [Shown(p.pixels, p.caption, chance.sample(p.questions, min(questions, len(p.questions)))) for p in own]
            logits, right, _ = student.answers(asked, features)
            told = cross_entropy(logits, right)
            losses.append(told.item())
            loss = told + 0.05 * loss
        else:
            losses.append(loss.item())
        for group in optimizer.param_groups:
            group["lr"] = (
                group["rate"] * min(1, (seen / batch + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        seen += batch
        if time.monotonic() - kept > 120:
            kept = time.monotonic()
            print(f"{done:6.1%}  {seen} pictures  loss {np.mean(losses[-200:]):.4f}", flush=True)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--stage", choices=("name", "answer", "report", "all"), default="all")
    parser.add_argument("--name-minutes", type=float, default=20)
    parser.add_argument("--answer-minutes", type=float, default=60)
    parser.add_argument("--drawings", type=int, default=20_000)
    parser.add_argument("--test", type=int, default=1_000, help="pictures of each source to report on")
    parser.add_argument("--out", type=Path, default=Path("eyes.safetensors"))
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        student = Student(demo_vision.untrained(local_directory("demo"), Path(scratch) / "model"))
    if options.out.exists():
        student.load(options.out)
    if options.stage != "report":
        easy = easy_vqa_pictures(student, "train")
        pictures = [*EASY_VQA_SHARE * easy, *drawings(student, options.drawings, TRAINING_SEED)]
        student.vocabulary = torch.tensor(sorted({t for p in pictures for t in p.caption}))
        print(f"{len(pictures)} pictures", flush=True)
        if options.stage in ("name", "all"):
            teach(student, pictures, options.name_minutes, 64, {"eyes": 1e-3}, 0, options.out)
        if options.stage in ("answer", "all"):
            teach(student, pictures, options.answer_minutes, 8, {"eyes": 3e-4, "changes": 1e-3}, 6, options.out)
    report(student, options.test)


if __name__ == "__main__":
    main()
