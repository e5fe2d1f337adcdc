"""Pictures that are drawn here, with questions whose answers are known: calibration and verdict for models that see.

Shapes and colours, counting, words, bar charts and tables; plain drawings, but of kinds that people ask about. No picture that
is drawn from one seed is drawn from another.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SIDE = 224  # pixels
COLOURS = {
    "red": (214, 40, 40),
    "green": (38, 150, 70),
    "blue": (35, 90, 200),
    "yellow": (240, 200, 40),
    "orange": (240, 130, 30),
    "purple": (130, 60, 170),
    "black": (20, 20, 20),
    "grey": (140, 140, 140),
}
PAPERS = ((255, 255, 255), (248, 240, 226), (226, 238, 248), (232, 246, 232))
KINDS = ("shape", "count", "word", "chart", "table")
SHAPES = ("circle", "square", "triangle")
WORDS = (
    *("apple", "bridge", "candle", "dragon", "engine", "forest", "garden", "harbor", "island", "jacket", "kettle", "ladder"),
    *("market", "needle", "orange", "pencil", "quarry", "ribbon", "silver", "tunnel", "valley", "window", "yellow", "zipper"),
)


@dataclass(frozen=True)
class Picture:
    """A picture, and a question about it. ``answer``: empty where nobody knows it."""

    image: Any  # PIL.Image.Image in RGB
    question: str
    answer: str = ""
    task: str = ""
    more: tuple[Any, ...] = ()  # further images that the question is about

    @property
    def images(self) -> list[Any]:
        return [self.image, *self.more]


@dataclass(frozen=True)
class Scene:
    """A drawing with all that can be asked about it, and what it shows in words, line by line."""

    image: Any  # PIL.Image.Image in RGB
    caption: str
    questions: tuple[tuple[str, str, str], ...]  # task, question, answer


def drawn(count: int, seed: int) -> list[Picture]:
    """``count`` pictures, the kinds of questions in turn."""
    chance = random.Random(f"questions {seed}")
    found = []
    for scene in scenes(count, seed):
        task, question, answer = chance.choice(scene.questions)
        found.append(Picture(scene.image, question, answer, task))
    return found


def scenes(count: int, seed: int, kinds: Sequence[str] = KINDS) -> Iterator[Scene]:
    """``count`` drawings, the ``kinds`` in turn."""
    chance = random.Random(f"pictures {seed}")
    makers = {"shape": _shape, "count": _count, "word": _word, "chart": _chart, "table": _table}
    for i in range(count):
        yield makers[kinds[i % len(kinds)]](chance)


def _paper(chance: random.Random) -> tuple[Any, Any]:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE, SIDE), chance.choice(PAPERS))
    return image, ImageDraw.Draw(image)


def _text(draw: Any, at: tuple[float, float], words: str, size: int, colour: tuple[int, int, int] = (20, 20, 20)) -> None:
    from PIL import ImageFont

    draw.text(at, words, fill=colour, font=ImageFont.load_default(size))


def _put(draw: Any, shape: str, x: float, y: float, r: float, colour: tuple[int, int, int]) -> None:
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "square":
        draw.rectangle((x - r, y - r, x + r, y + r), fill=colour)
    else:
        draw.polygon(((x, y - r), (x - r, y + r), (x + r, y + r)), fill=colour)


def _shape(chance: random.Random) -> Scene:
    image, draw = _paper(chance)
    shape, colour = chance.choice(SHAPES), chance.choice(list(COLOURS))
    r = chance.uniform(25, 60)
    _put(draw, shape, chance.uniform(r, SIDE - r), chance.uniform(r, SIDE - r), r, COLOURS[colour])
    questions = (
        ("shape", "Which shape is in the picture?", f"A {shape}."),
        ("colour", f"Which colour is the {shape}?", f"The {shape} is {colour}."),
    )
    return Scene(image, f"{colour} {shape}", questions)


def _count(chance: random.Random) -> Scene:
    image, draw = _paper(chance)
    shape, colour, n = chance.choice(SHAPES), chance.choice(list(COLOURS)), chance.randint(1, 6)
    cells = chance.sample(range(9), n)
    for cell in cells:
        x, y = SIDE * (cell % 3 + 0.5) / 3, SIDE * (cell // 3 + 0.5) / 3
        _put(draw, shape, x + chance.uniform(-8, 8), y + chance.uniform(-8, 8), chance.uniform(14, 22), COLOURS[colour])
    answer = f"There are {n}." if n > 1 else "There is one."
    rows = [" ".join(shape if 3 * row + i in cells else "." for i in range(3)) for row in range(3)]
    caption = "\n".join((f"{n} {colour} {shape}", *rows))
    return Scene(image, caption, (("counting", f"How many {shape}s are in the picture?", answer),))


def _word(chance: random.Random) -> Scene:
    image, draw = _paper(chance)
    word, colour = chance.choice(WORDS), chance.choice(list(COLOURS))
    at = (12, 12 + 50 * chance.randrange(4))  # one of four lines
    _text(draw, at, word, chance.choice((30, 40)), COLOURS[colour])
    question = "Which word is written in the picture?"
    caption = f"{word} {colour}\n{' '.join(word[:4])}\n{' '.join(word[4:])}"
    return Scene(image, caption, (("reading", question, f'The word is "{word}".'),))


def _chart(chance: random.Random) -> Scene:
    image, draw = _paper(chance)
    names, heights = chance.sample(list(COLOURS), 4), chance.sample(range(20, 160, 12), 4)
    for i, (name, height) in enumerate(zip(names, heights, strict=True)):
        left = 18 + 50 * i
        draw.rectangle((left, SIDE - 40 - height, left + 36, SIDE - 40), fill=COLOURS[name])
        _text(draw, (left + 10, SIDE - 36), "ABCD"[i], 20)
    low, *_, high = sorted(range(4), key=lambda i: heights[i])
    questions = (
        ("chart", "Which bar is the highest?", f"Bar {'ABCD'[high]}, which is {names[high]}."),
        ("chart", "Which bar is the lowest?", f"Bar {'ABCD'[low]}, which is {names[low]}."),
    )
    ends = f"highest {'ABCD'[high]} {names[high]}\nlowest {'ABCD'[low]} {names[low]}"
    return Scene(image, f"{ends}\n{' '.join(names)}", questions)


def _table(chance: random.Random) -> Scene:
    image, draw = _paper(chance)
    names, numbers = chance.sample(WORDS, 4), chance.sample(range(10, 99), 4)
    for i, (name, number) in enumerate(zip(names, numbers, strict=True)):
        y = 20 + 48 * i
        draw.line((10, y + 36, SIDE - 10, y + 36), fill=(120, 120, 120))
        _text(draw, (16, y), name, 22)
        _text(draw, (160, y), str(number), 22)
    questions = [
        ("table", f"Which number stands beside {name}?", f"The number is {number}.")
        for name, number in zip(names, numbers, strict=True)
    ]
    caption = "\n".join(f"{name} {number}" for name, number in zip(names, numbers, strict=True))
    return Scene(image, caption, tuple(questions))
