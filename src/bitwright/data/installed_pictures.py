"""Photographs and drawings that the Python packages on this machine carry: calibration that is not of our making."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from bitwright.data.image_rows import SUFFIXES, opened
from bitwright.data.pictures import Picture
from bitwright.errors import BitwrightError

LEAST_BYTES, MOST_BYTES = 4_000, 4_000_000  # of a file: less is an icon
LEAST_SIDE = 96  # pixels
MOST_OF_A_PACKAGE = 24
CROPPED = 448  # pixels: of a larger picture a part is shown
QUESTIONS = (
    "Describe the picture.",
    "What is in the picture?",
    "Which colours are in the picture?",
    "What is written in the picture?",
    "Is this a photograph or a drawing?",
    "How many things are in the picture?",
)


def installed_pictures(count: int, seed: int) -> list[Picture]:
    """``count`` pictures with questions that nobody has answered, each file in turn and parts of large ones; none where the
    packages carry none."""
    images = list(_images())
    if not images:
        return []
    chance = random.Random(f"installed pictures {seed}")
    order = chance.sample(range(len(images)), len(images))
    found = [images[order[i % len(images)]] for i in range(count)]
    return [Picture(_part(image, chance), chance.choice(QUESTIONS)) for image in found]


def _part(image: Any, chance: random.Random) -> Any:
    """``image``, or a square part of it where it is large."""
    side = min(image.size)
    if side <= CROPPED:
        return image
    side = chance.randint(CROPPED, side)
    left, top = chance.randint(0, image.width - side), chance.randint(0, image.height - side)
    return image.crop((left, top, left + side, top + side)).resize((CROPPED, CROPPED))


@cache
def _images() -> tuple[Any, ...]:
    found = []
    for path in _files():
        try:
            image = opened(path, str(path))
        except BitwrightError:  # none that can be shown
            continue
        if min(image.size) >= LEAST_SIDE:
            found.append(image)
    return tuple(found)


def _files() -> Iterator[Path]:
    """Files of the installed packages, in the order of their names."""
    packages = {package.metadata["Name"]: package for package in distributions() if package.metadata["Name"]}
    for _, package in sorted(packages.items()):
        own = sorted((file for file in package.files or () if file.suffix.lower() in SUFFIXES), key=str)
        places = [Path(str(package.locate_file(file))) for file in own]
        sizes = [(place, place.stat().st_size) for place in places if place.is_file()]
        fitting = [place for place, size in sizes if LEAST_BYTES <= size <= MOST_BYTES]
        yield from fitting[:MOST_OF_A_PACKAGE]
