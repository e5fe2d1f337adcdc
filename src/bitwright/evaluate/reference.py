"""What is kept of the 16-bit model's distributions: the likeliest tokens, the tail's mass, and a sample of the tail."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitwright.data.draw import drawn_at

LIKELIEST = 256  # tokens kept exactly; a vocabulary of no more is kept whole
DIGEST = "sha256"  # of the tensors, in the metadata of a kept file
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
    scores = logits.float()
    n_tokens, vocabulary = scores.shape
    of_next = scores[: len(next_ids)].gather(1, next_ids[:, None])[:, 0]
    top = scores.topk(min(likeliest, vocabulary), -1)
    tail = (scores if scores is not logits else scores.clone()).scatter_(1, top.indices, -torch.inf)
    largest = tail.amax(-1, keepdim=True).nan_to_num(neginf=0.0)  # -inf where the vocabulary is kept whole
    mass = tail.sub_(largest).exp_()
    of_tail = mass.sum(-1).log() + largest[:, 0]
    total = torch.logaddexp(top.values.logsumexp(-1), of_tail)
    nll = torch.full((n_tokens,), torch.nan, device=scores.device)
    nll[: len(next_ids)] = total[: len(next_ids)] - of_next
    drawn = torch.zeros((n_tokens, samples if likeliest < vocabulary else 0), dtype=torch.long, device=scores.device)
    of_drawn = torch.zeros(drawn.shape, device=scores.device)
    if drawn.numel():
        offset = torch.rand(n_tokens, 1, generator=torch.Generator().manual_seed(0)).to(scores.device)
        drawn = drawn_at(mass, (offset + torch.arange(samples, device=scores.device)) / samples)
        of_drawn = mass.gather(1, drawn).log() + largest
    log_p, log_drawn = top.values - total[:, None], of_drawn - total[:, None]
    kept = (top.indices.int(), log_p, of_tail - total, drawn.int(), log_drawn, nll)
    return Reference(*[tensor.cpu() for tensor in kept])


class DamagedError(Exception):
    """A kept file that must be made again."""


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def save(path: Path, references: list[Reference], greedy: Tensor | None) -> None:
    """Write the references of several texts; the file appears whole or not at all."""
    tensors = {f.name: torch.cat([getattr(reference, f.name) for reference in references]) for f in fields(Reference)}
    tensors["lengths"] = torch.tensor([len(reference.nll) for reference in references])
    if greedy is not None:
        tensors["greedy"] = greedy.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, scratch, metadata={DIGEST: _digest(tensors)})
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def load(path: Path) -> tuple[list[Reference], Tensor | None]:
    """What ``save`` wrote. Raises DamagedError for a file that is not whole, or no longer what was written."""
    try:
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get(DIGEST)
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedError(str(error)) from None
    if written != _digest(tensors):
        raise DamagedError("its content has changed")
    greedy, lengths = tensors.pop("greedy", None), tensors.pop("lengths").tolist()
    parts = {name: torch.split(tensor, lengths) for name, tensor in tensors.items()}
    return [Reference(**{name: part[s] for name, part in parts.items()}) for s in range(len(lengths))], greedy
