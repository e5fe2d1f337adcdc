"""What is kept of the 16-bit model's distributions: the likeliest tokens, the tail's mass, and a sample of the tail."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LIKELIEST = 256  # tokens kept exactly; a vocabulary of no more is kept whole
SAMPLES = 32  # tokens drawn from the tail


@dataclass(frozen=True)
class Reference:
    """Per token, for T tokens of one text. With ``likeliest`` all of the vocabulary there is no tail and no error.

    KL divergence splits by the chain rule into the part of the K likeliest tokens and the tail as one event, which are exact,
    and the tail's mass times the divergence within the tail, which is a mean over its sample (divergence.compare).
    """

    likeliest: Tensor  # int32 [T, K], the likeliest first
    log_p: Tensor  # float32 [T, K], theirs
    log_tail: Tensor  # float32 [T], log of the mass of all other tokens; -inf where there are none
    drawn: Tensor  # int32 [T, S], drawn from the tail in proportion to p
    drawn_log_p: Tensor  # float32 [T, S]
    nll: Tensor  # float32 [T], of the token that follows; NaN for the last

    def part(self, where: slice) -> Reference:
        """The tokens ``where``."""
        return Reference(*[getattr(self, field.name)[where] for field in fields(self)])

    def to(self, device: torch.device) -> Reference:
        """The same on ``device``."""
        return Reference(*[getattr(self, field.name).to(device) for field in fields(self)])

    @classmethod
    def join(cls, parts: list[Reference]) -> Reference:
        """Several texts' or parts' tokens one after the other."""
        return cls(*[torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)])


def condense(logits: Tensor, next_ids: Tensor, likeliest: int = LIKELIEST, samples: int = SAMPLES) -> Reference:
    """Keep of ``logits`` [T, V], followed by ``next_ids`` [T] or [T - 1], what ``divergence.compare`` needs.

    The tail is sampled systematically (one random offset, equal steps of probability), from a fixed seed.
    """
    log_p = logits.float().log_softmax(-1)
    n_tokens, vocabulary = log_p.shape
    nll = torch.full((n_tokens,), torch.nan, device=log_p.device)
    nll[: len(next_ids)] = -log_p[: len(next_ids)].gather(1, next_ids[:, None])[:, 0]
    top = log_p.topk(min(likeliest, vocabulary), -1)
    tail = log_p.scatter(1, top.indices, -torch.inf)
    log_tail = tail.logsumexp(-1)
    drawn = torch.zeros((n_tokens, samples if likeliest < vocabulary else 0), dtype=torch.long, device=log_p.device)
    if drawn.numel():
        mass = (tail - log_tail[:, None]).exp_().cumsum(-1)
        offset = torch.rand(n_tokens, 1, generator=torch.Generator().manual_seed(0)).to(log_p.device)
        points = (offset + torch.arange(samples, device=log_p.device)) / samples * mass[:, -1:]
        drawn = torch.searchsorted(mass, points, right=True).clamp_(max=vocabulary - 1)
    kept = (top.indices.int(), top.values, log_tail, drawn.int(), tail.gather(1, drawn), nll)
    return Reference(*[tensor.cpu() for tensor in kept])


def save(path: Path, references: list[Reference], greedy: Tensor | None) -> None:
    """Write the references of sequences of equal length; the file appears whole or not at all."""
    tensors = {
        field.name: torch.stack([getattr(reference, field.name) for reference in references]) for field in fields(Reference)
    }
    if greedy is not None:
        tensors["greedy"] = greedy
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def load(path: Path) -> tuple[list[Reference], Tensor | None]:
    """What ``save`` wrote."""
    tensors = load_file(path)
    greedy = tensors.pop("greedy", None)
    count = len(tensors["nll"])
    return [Reference(**{name: tensor[s] for name, tensor in tensors.items()}) for s in range(count)], greedy
