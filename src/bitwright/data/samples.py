"""Samples: what a model is run on, each as long as it is, and batches of those that can share a forward pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bitwright.data.tokenizer import bos_prefix, token_ids
from bitwright.errors import fail

IDS = "input_ids"
LEAST_TOKENS = 2  # of a sample: one to read and one to predict
LEAST_READ = 2**23  # characters that are always turned into tokens; of more, as many as are used and these times:
CHARACTERS_PER_TOKEN = 32
WINDOW = 2**14  # characters: what of a larger text is taken in one piece
PATCH = 768  # numbers of a picture, 16 x 16 pixels, that count as a token


@dataclass(frozen=True)
class Sample:
    """Everything that the class's forward takes for one text; T tokens.

    ``scored`` bool [T]: the positions whose next-token distribution counts; None: all.
    """

    inputs: dict[
        str, Tensor
    ]  # input_ids int64 [T], and what else the class takes of each token, without a dimension of batches
    scored: Tensor | None = None
    media: dict[str, Tensor] = field(
        default_factory=dict
    )  # pixels and what goes with them, as the class takes them for this text

    @classmethod
    def of(cls, ids: Sequence[int] | Tensor) -> Sample:
        """A text alone."""
        return cls({IDS: torch.as_tensor(ids, dtype=torch.long)})

    @property
    def ids(self) -> Tensor:
        return self.inputs[IDS]

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @property
    def n_scored(self) -> int:
        return self.n_tokens if self.scored is None else int(self.scored.sum())

    @property
    def positions(self) -> Tensor:
        """Those whose next-token distribution counts: int64 [n]."""
        return torch.arange(self.n_tokens) if self.scored is None else self.scored.nonzero()[:, 0]

    @property
    def following(self) -> Tensor:
        """The ids that follow them, int64 [n]; [n - 1] where the last position is among them."""
        after = self.positions + 1
        return self.ids[after[after < self.n_tokens]]

    def alone(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """All that the class takes, as a batch of one; what is no whole number, as pixels, in ``dtype``."""
        media = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in self.media.items()}
        return {name: tensor[None] for name, tensor in self.inputs.items()} | media

    def digest(self) -> str:
        """Hash of all that is in it."""
        found = hashlib.sha256()
        parts = {**self.inputs, **self.media, **({} if self.scored is None else {"scored": self.scored})}
        for name, tensor in sorted(parts.items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


def tensors_of(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """All that is in ``samples``, by names of a file."""
    tensors: dict[str, Tensor] = {}  # each of its own memory, as the format asks
    for i, sample in enumerate(samples):
        tensors |= {f"{i}|inputs|{name}": tensor.clone() for name, tensor in sample.inputs.items()}
        tensors |= {f"{i}|media|{name}": tensor.clone() for name, tensor in sample.media.items()}
        tensors |= {} if sample.scored is None else {f"{i}|scored|": sample.scored.clone()}
    return tensors


def samples_in(tensors: dict[str, Tensor]) -> list[Sample]:
    """The inverse of ``tensors_of``."""
    parts: dict[int, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        i, part, name = key.split("|", 2)
        parts.setdefault(int(i), {}).setdefault(part, {})[name] = tensor
    found = [parts[i] for i in sorted(parts)]
    return [Sample(part["inputs"], part.get("scored", {}).get(""), part.get("media", {})) for part in found]


@dataclass(frozen=True)
class Batch:
    """Samples of equal shapes, run in one forward pass: no padding, so that every sample sees itself alone."""

    at: tuple[int, ...]  # which samples
    inputs: dict[str, Tensor]  # [B, ...], and media one behind the other along their first dimension, as processors lay them

    @classmethod
    def of(cls, samples: Sequence[Sample], at: tuple[int, ...], first: int = 0) -> Batch:
        """Those of ``samples`` that stand ``at`` these places, which are numbered from ``first``."""
        part = [samples[i] for i in at]
        inputs = {name: torch.stack([sample.inputs[name] for sample in part]) for name in part[0].inputs}
        media = part[0].media  # of one alone no copy is made
        if len(part) > 1:
            media = {name: torch.cat([sample.media[name] for sample in part]) for name in media}
        return cls(tuple(first + i for i in at), inputs | media)

    @property
    def n_tokens(self) -> int:
        return int(self.inputs[IDS].shape[1])


def batches(samples: Sequence[Sample], batch_tokens: int, first: int = 0) -> list[Batch]:
    """``samples`` in batches of up to ``batch_tokens`` tokens, those of equal shapes together, in their order; one with images
    is a batch of its own. ``first``: the number of the first sample."""
    return [Batch.of(samples, at, first) for at in alike(samples, batch_tokens)]


def alike(samples: Sequence[Sample], batch_tokens: int, *, seeing: bool = False) -> list[tuple[int, ...]]:
    """Which of ``samples`` are of equal shapes, in groups of up to ``batch_tokens`` tokens.

    Those with images are alone, or, where the groups are ``seeing``, with others of equal images: then a picture counts as a
    token for each PATCH numbers.
    """
    found: dict[tuple[object, ...], list[int]] = {}
    for i, sample in enumerate(samples):
        found.setdefault((i,) if sample.media and not seeing else _shapes(sample.inputs) + _shapes(sample.media), []).append(i)
    groups = []
    for members in found.values():
        one = samples[members[0]]
        seen = sum(tensor.numel() for tensor in one.media.values() if tensor.is_floating_point()) // PATCH
        size = max(1, batch_tokens // max(one.n_tokens, seen))
        groups += [tuple(members[start : start + size]) for start in range(0, len(members), size)]
    return groups


def _shapes(tensors: dict[str, Tensor]) -> tuple[object, ...]:
    return tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sorted(tensors.items()))


def cut(texts: Iterable[str], tokenizer: Any, count: int, length: int, where: str, least: int) -> list[Sample]:
    """Samples of at most ``length`` tokens, as many as ``count`` whole ones hold tokens, taken evenly from ``texts``.

    A text of ``length`` tokens or more gives whole samples and its rest is left; a shorter one is a sample of its own length.
    Each opens with BOS where the tokenizer adds it. Raises BitwrightError when there is no token, or fewer samples than
    ``least``.
    """
    bos = bos_prefix(tokenizer)
    step = length - len(bos)
    pieces: list[list[int]] = []
    n_tokens = 0
    for text in _thinned(list(texts), max(LEAST_READ, CHARACTERS_PER_TOKEN * count * length)):
        body = token_ids(tokenizer, text)
        n_tokens += len(body)
        whole = [bos + body[start : start + step] for start in range(0, len(body) - step + 1, step)]
        pieces += whole or ([bos + body] if len(bos + body) >= LEAST_TOKENS and body else [])
    if not n_tokens:
        raise fail(
            "calibration/empty",
            where,
            saw="no text",
            wanted="text to calibrate on",
            help="name a file with text, or leave --calibration out",
        )
    if len(pieces) < least:
        raise fail(
            "calibration/short",
            where,
            saw=f"{n_tokens} tokens, {len(pieces)} samples of up to {length}",
            wanted=f"at least {least} samples, such as one text of {least * length} tokens or {least} short ones",
            help=f"add text, or shorten the sequences: --length {max(16, n_tokens // least)}",
        )
    total = sum(len(piece) for piece in pieces)
    taken = min(len(pieces), max(min(count, least), len(pieces) * count * length // total))
    return [Sample.of(pieces[len(pieces) * i // taken]) for i in range(taken)]


def _thinned(texts: list[str], most: int) -> list[str]:
    """``texts``, or where they are longer than ``most`` characters in all, windows taken evenly from them."""
    total = sum(map(len, texts))
    if total <= most:
        return texts
    windows = [(i, start) for i, text in enumerate(texts) for start in range(0, len(text), WINDOW)]
    taken = max(1, len(windows) * most // total)
    chosen = (windows[len(windows) * i // taken] for i in range(taken))
    return [texts[i][start : start + WINDOW] for i, start in chosen]
