"""From the user's words to folds of samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from bitwright.checkpoint.workdir import WorkDir, content_hash
from bitwright.data.documentation import DOCUMENTATION, documentation
from bitwright.data.folds import MIN_SAMPLES, Folds, fold
from bitwright.data.image_rows import is_folder, pictures_in
from bitwright.data.installed_pictures import installed_pictures
from bitwright.data.library_code import CODE, library_code
from bitwright.data.pictures import Picture, drawn
from bitwright.data.rows import read_texts
from bitwright.data.samples import Sample, cut, samples_in, tensors_of
from bitwright.data.self_written import write_itself
from bitwright.data.viewer import Viewer
from bitwright.errors import fail
from bitwright.host.device import precision_of
from bitwright.host.memory import total_nbytes
from bitwright.host.packages import pip_install
from bitwright.host.progress import Reporter
from bitwright.models.open import auto_class
from bitwright.models.skeleton import Skeleton
from bitwright.models.spec import ModelSpec
from bitwright.plan import OF_PICTURES
from bitwright.settings import Effort, Settings

SELF = "self"
PICTURES = "pictures"
MIXED, INSTALLED = "mixed", "installed"
SHARES_OF: dict[str, dict[str, int]] = {  # of the sequences, by kind of text
    MIXED: {SELF: 4, DOCUMENTATION: 1, CODE: 1},
    INSTALLED: {DOCUMENTATION: 1, CODE: 1},
}
SHARES_SEEING: dict[str, dict[str, int]] = {  # the same for a model that sees
    MIXED: {PICTURES: 3, SELF: 2, DOCUMENTATION: 1},
    INSTALLED: {PICTURES: 2, DOCUMENTATION: 1},
}
WORDS = {SELF: "text that the model wrote itself", DOCUMENTATION: "documentation", CODE: "source code", PICTURES: OF_PICTURES}
SEQUENCES = 128
TOKENS_PER_COLUMN = 3
EFFORT = {Effort.QUICK: 0.25, Effort.NORMAL: 1.0, Effort.THOROUGH: 3.0}
INSTALLED_SHARE = 4  # one picture in so many is of an installed package, the others are drawn
PIECE = "calibration.safetensors"
RESIDENT_SHARE = 1.3  # memory of a model that writes text, over its weights


def sequences_of(settings: Settings, spec: ModelSpec) -> int:
    """How many sequences ``settings.effort`` gives: 128 times its share, or so many more that the widest weight has
    TOKENS_PER_COLUMN tokens for each of its columns times that share."""
    widest = max(weight.n_cols for weight in spec.weights)
    return max(MIN_SAMPLES, round(EFFORT[settings.effort] * max(SEQUENCES, TOKENS_PER_COLUMN * widest / settings.length)))


def calibration_of(settings: Settings, skeleton: Skeleton) -> tuple[str, str]:
    """The calibration source, and a note when it was chosen by the sizes of machine and model, never by what is free now."""
    if settings.calibration:
        return settings.calibration, ""
    needed = int(RESIDENT_SHARE * _nbytes(skeleton))
    room = min(total_nbytes(), settings.max_memory or total_nbytes())
    if needed <= room:
        return MIXED, ""
    return INSTALLED, (
        f"calibrated on documentation and code: a model that writes its own text needs {needed / 1e9:.1f} GB, "
        f"{room / 1e9:.1f} are there"
    )


def calibration_folds(
    skeleton: Skeleton,
    tokenizer: Any,
    calibration: str,
    settings: Settings,
    device: torch.device,
    work: WorkDir,
    reporter: Reporter,
    viewer: Viewer | None = None,
) -> Folds:
    """Folds from ``calibration``: a file, a folder of pictures, a datasets id, ``self`` (kept in ``work`` once written),
    ``documentation``, ``code``, ``pictures``, or a mixture of these (SHARES_OF, SHARES_SEEING)."""
    parts = {}
    counts = counts_of(calibration, settings.sequences, seeing=viewer is not None)
    resident = _Resident(skeleton, settings, device)
    for kind, count in counts.items():
        if kind == SELF:
            if not work.has(PIECE):
                work.save_tensors(
                    PIECE, {"ids": write_itself(resident.model, tokenizer, count, settings.length, settings.seed, reporter)}
                )
            parts[WORDS[kind]] = [Sample.of(row) for row in work.load_tensors(PIECE)["ids"]]
            continue
        if kind not in (DOCUMENTATION, CODE):
            shown = _pictures(kind, count, calibration, settings, viewer, resident, work, reporter)
            if shown:
                parts[WORDS[PICTURES]] = shown
            if kind == PICTURES or is_folder(kind):
                continue
        least = min(count, MIN_SAMPLES) if len(counts) > 1 else MIN_SAMPLES
        texts = _texts(kind, tokenizer)
        if texts or not parts:
            parts[WORDS.get(kind, kind)] = cut(texts, tokenizer, count, settings.length, kind, least)
    return fold(parts, settings.seed)


def _pictures(
    kind: str,
    count: int,
    calibration: str,
    settings: Settings,
    viewer: Viewer | None,
    resident: _Resident,
    work: WorkDir,
    reporter: Reporter,
) -> list[Sample]:
    """Samples with images, where ``kind`` has any: answered as rows say, or by the model itself (kept in ``work``)."""
    if kind == PICTURES:
        known = calibration == INSTALLED  # a model that is not loaded answers nothing
        installed = [] if known else installed_pictures(count // INSTALLED_SHARE, settings.seed)
        pictures = drawn(count - len(installed), settings.seed) + installed
    else:
        pictures = pictures_in(kind)[:count]
    if not pictures:
        return []
    if viewer is None:
        raise fail(
            "calibration/images",
            f"--calibration {kind}",
            saw="images, and a model that cannot be shown any",
            wanted="a model that sees, with its processor and the packages that it imports",
            help=f"name texts, or {pip_install('pillow', 'torchvision')}",
        )
    if kind == PICTURES and calibration == INSTALLED:
        return viewer.told(pictures)
    piece = f"pictures-{_digest(pictures)}.safetensors"  # a folder may have changed since
    if not work.has(piece):
        told = viewer.told([picture for picture in pictures if picture.answer]) if kind != PICTURES else []
        open_ones = [picture for picture in pictures if kind == PICTURES or not picture.answer]
        asked = viewer.asked(resident.model, open_ones, settings.seed, reporter) if open_ones else []
        work.save_tensors(piece, tensors_of(told + asked))
    found = samples_in(work.load_tensors(piece))
    if len(found) < MIN_SAMPLES:
        raise fail(
            "calibration/images",
            f"--calibration {kind}",
            saw=f"{len(found)} images with an answer",
            wanted=f"at least {MIN_SAMPLES}",
            help="name more images",
        )
    return found


def _digest(pictures: Sequence[Picture]) -> str:
    """Hash of what the pictures show, are asked and are answered."""
    shown = [hashlib.sha256(image.tobytes()).hexdigest() for picture in pictures for image in picture.images]
    return content_hash(shown, [(p.question, p.answer, len(p.images), p.image.size) for p in pictures])


def shows_pictures(calibration: str, seeing: bool) -> bool:
    """Whether samples of ``calibration`` may have images. ``seeing``: whether the model can be shown any."""
    return seeing and any(kind not in (SELF, DOCUMENTATION, CODE) for kind in counts_of(calibration, SEQUENCES, seeing))


def counts_of(calibration: str, sequences: int, seeing: bool = False) -> dict[str, int]:
    """How many of ``sequences`` come from which text, none of them zero. ``seeing``: for a model that is shown pictures.

    >>> counts_of("mixed", 64)
    {'self': 44, 'documentation': 10, 'code': 10}
    """
    shares = (SHARES_SEEING if seeing else SHARES_OF).get(calibration, {calibration: 1})
    total, left, found = sum(shares.values()), sequences, {}
    for kind, share in reversed(shares.items()):
        found[kind] = max(1, sequences * share // total)
        left -= found[kind]
    first = next(iter(shares))
    found[first] += left
    return {kind: found[kind] for kind in shares}


def _texts(kind: str, tokenizer: Any) -> list[str]:
    if kind == DOCUMENTATION:
        return documentation(0, 2)
    return library_code() if kind == CODE else read_texts(kind, tokenizer)


def _nbytes(skeleton: Skeleton) -> int:
    return sum(ref.nbytes for ref in skeleton.source.checkpoint.refs.values())


def resident_dtype(skeleton: Skeleton, settings: Settings, device: torch.device) -> torch.dtype:
    """The type in which a model writes text: the one that multiplies fastest, if the machine has room for that."""
    dtype = precision_of("auto", device).work
    room = min(total_nbytes(), settings.max_memory or total_nbytes())
    return torch.bfloat16 if RESIDENT_SHARE * _nbytes(skeleton) * dtype.itemsize / 2 > room else dtype


@dataclass
class _Resident:
    """The whole model in memory, loaded when it is asked for: it writes and answers."""

    skeleton: Skeleton
    settings: Settings
    device: torch.device

    @cached_property
    def model(self) -> Any:
        """In the type that multiplies fastest, if the machine has room for that."""
        dtype = resident_dtype(self.skeleton, self.settings, self.device)
        model: Any = auto_class(self.skeleton.model.config).from_pretrained(
            self.skeleton.source.checkpoint.directory, dtype=dtype, trust_remote_code=self.settings.trust_remote_code
        )
        return model.to(self.device).eval()
