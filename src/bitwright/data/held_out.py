"""The text of the verdict, which nothing else has seen."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from bitwright.checkpoint.output import SHOWN
from bitwright.data.calibration import PICTURES, SHARES_OF, WORDS
from bitwright.data.documentation import DOCUMENTATION, documentation, passages
from bitwright.data.image_rows import is_folder, pictures_in
from bitwright.data.pictures import Picture, drawn
from bitwright.data.probe import Probe
from bitwright.data.rows import read_domains, read_texts
from bitwright.data.samples import Sample, cut
from bitwright.data.viewer import Viewer
from bitwright.errors import BitwrightError, fail

LEAST = 6
PICTURES_PER_SAMPLE = 8  # an answer has about a fiftieth of a sequence's tokens
LENGTH_BESIDE_PICTURES = 128
HELD_OUT_SEED = -1  # of drawn pictures: no --seed is negative
LEAST_OF_DOMAIN = 2  # what an interval needs
WRONG, BLANK = "pictures, wrong image", "pictures, blank image"  # controls: does the model look?
CONTROLS = 16  # pictures of each
PAPER = (128, 128, 128)  # of a blank image
MOST_SHARED = 0.02  # of the passages of a text may be in another


def held_out(tokenizer: Any, source: str, count: int, length: int, viewer: Viewer | None = None) -> Probe:
    """What the verdict is on, with the domain of each sample where the rows of a file name domains.

    ``source``: ``documentation`` (the half that calibration never reads), a file, or a folder of pictures. Of several domains
    each gets as much as ``count`` samples of ``length`` tokens allow, and never fewer than two samples. A model that sees, by
    its ``viewer``, is asked about pictures too: in the place of documentation about drawn ones that calibration never draws,
    with a little text beside them; and, as controls, with a picture that is not the question's, and with none in it.
    """
    pictures = _pictures(source, count, viewer)
    if not pictures or viewer is None:
        texts, domains = _texts_of(tokenizer, source, count, length, may_be_empty=False)
        return Probe.of(texts, domains)
    asked = {PICTURES: pictures, **(_controls(pictures[:CONTROLS]) if len(pictures) > 1 else {})}
    samples = {domain: viewer.told(own) for domain, own in asked.items()}
    if not is_folder(source):
        if source == DOCUMENTATION:
            count, length = LEAST, min(length, LENGTH_BESIDE_PICTURES)
        texts, domains = _texts_of(tokenizer, source, count, length, may_be_empty=True)
        for text, domain in zip(texts, domains, strict=True):
            samples.setdefault(domain or source, []).append(text)
    return Probe(
        tuple(sample for own in samples.values() for sample in own),
        tuple(domain for domain, own in samples.items() for _ in own),
        tuple(domain for domain in asked if domain != PICTURES),
        tuple(pictures[:SHOWN]),
        tuple(viewer.prompt(picture) for picture in pictures[:SHOWN]),
    )


def _controls(pictures: list[Picture]) -> dict[str, list[Picture]]:
    """The same questions about pictures that cannot answer them."""
    from PIL import Image

    wrong = [replace(picture, image=pictures[i - 1].image) for i, picture in enumerate(pictures)]
    blank = [_with(picture, [Image.new("RGB", image.size, PAPER) for image in picture.images]) for picture in pictures]
    return {WRONG: wrong, BLANK: blank}


def _with(picture: Picture, images: list[Any]) -> Picture:
    return replace(picture, image=images[0], more=tuple(images[1:]))


def _pictures(source: str, count: int, viewer: Viewer | None) -> list[Picture]:
    """Pictures with questions whose answers are known."""
    pictures = drawn(PICTURES_PER_SAMPLE * count, HELD_OUT_SEED) if source == DOCUMENTATION and viewer else pictures_in(source)
    if not pictures:
        return []
    if viewer is None:
        raise _unseen(source, "images, and a model that cannot be shown any")
    if unanswered := sum(not picture.answer for picture in pictures):
        raise _unseen(source, f"{unanswered} images without an answer")
    return pictures


def _unseen(source: str, saw: str) -> BitwrightError:
    return fail(
        "held-out/images",
        f"--held-out {source}",
        saw=saw,
        wanted="images with a question and an answer, for a model that sees",
        help="add the column answer (or NAME.txt beside NAME.jpg), or leave --held-out out",
    )


def _texts_of(tokenizer: Any, source: str, count: int, length: int, may_be_empty: bool) -> tuple[list[Sample], tuple[str, ...]]:
    texts = {"": documentation(1, 2)} if source == DOCUMENTATION else read_domains(source, tokenizer)
    if not texts and may_be_empty:
        return [], ()
    if len(texts) == 1:
        name, only = texts.popitem()
        samples = cut(only, tokenizer, count, length, source, LEAST)
        return samples, (name,) * len(samples)
    found: list[Sample] = []
    names: list[str] = []
    for name, of_domain in texts.items():
        share = max(LEAST_OF_DOMAIN, count // len(texts))
        part = cut(of_domain, tokenizer, share, length, f"{source}, domain {name}", LEAST_OF_DOMAIN)
        found += part
        names += [name] * len(part)
    return found, tuple(names)


def require_unseen(source: str, calibration: str, tokenizer: Any) -> None:
    """Raise BitwrightError when the text of the verdict is what calibration reads, under whatever name, or shares much with it.

    ``calibration``: a file or a datasets id; of the words of data/calibration.py none reads what ``source`` can name.
    """
    if not calibration or calibration in SHARES_OF or calibration in WORDS:
        return
    if source == calibration:
        raise _seen(source, "the calibration text itself")
    pictures = {_digest(picture) for picture in pictures_in(calibration)}
    if shared_pictures := sum(_digest(picture) in pictures for picture in pictures_in(source)):
        raise _seen(source, f"{shared_pictures} of its images are calibration images too")
    if is_folder(calibration) or is_folder(source):
        return
    texts = documentation(1, 2) if source == DOCUMENTATION else read_texts(source, tokenizer)
    wanted = [passage for text in texts for passage in passages(text)]
    seen = {passage for text in read_texts(calibration, tokenizer) for passage in passages(text)}
    shared = [passage for passage in wanted if passage in seen]
    if sum(map(len, shared)) > MOST_SHARED * sum(map(len, wanted)):
        raise _seen(source, f"{len(shared)} of its {len(wanted)} passages are calibration text too, such as {shared[0][:60]!r}")


def _digest(picture: Picture) -> str:
    found = hashlib.sha256()
    for image in picture.images:
        found.update(repr(image.size).encode() + image.tobytes())
    return found.hexdigest()


def _seen(source: str, saw: str) -> BitwrightError:
    return fail(
        "held-out/seen",
        f"--held-out {source}",
        saw=saw,
        wanted="text that nothing else saw",
        help="name another file, or leave --held-out out",
    )
