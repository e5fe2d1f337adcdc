"""A quantized file, opened to be trained on: its codes, the 16-bit model that it came from and, of one of ours, its plan."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from bitwright.checkpoint.output import BESIDE, beside
from bitwright.checkpoint.result import original_of, plan_of
from bitwright.containers.gguf.container import GGUF
from bitwright.containers.gguf.layout import known_family
from bitwright.errors import fail
from bitwright.estimate.training import KEPT, activation_nbytes
from bitwright.finetune.model import as_it_is, load, matching, of_parts
from bitwright.finetune.quant_linear import QuantLinear
from bitwright.finetune.snapped import SnappedLinear
from bitwright.finetune.weights import PackedWeight
from bitwright.formats.base import Packed
from bitwright.formats.families import unpacked
from bitwright.host.memory import total_nbytes
from bitwright.measure.subject import Subject
from bitwright.models.spec import TEXT, Kind, Weight
from bitwright.plan import Plan, Rounding
from bitwright.settings import Settings

MEMORY_SHARE = 0.3  # of the machine's


@dataclass(frozen=True)
class Stored:
    """A quantized file at ``path``, whoever wrote it. ``packed``: the codes of every weight that is quantized in it."""

    path: Path
    subject: Subject
    packed: Mapping[str, Packed]

    @classmethod
    def of_gguf(cls, path: Path, settings: Settings) -> Self | None:
        """The .gguf file at ``path``; what it does not quantize in a way that we know is taken in 16 bit.

        None of a family whose names we do not know."""
        subject = Subject.open(path, replace(settings, container=GGUF.name))
        if known_family(subject.source.spec) is None:
            return None
        return cls(path, subject, GGUF.read(path, subject.source.spec.weights))

    @property
    def directory(self) -> Path:
        """Of the 16-bit model."""
        return self.subject.source.checkpoint.directory

    def digest(self) -> str:
        """Hash of all codes."""
        found = hashlib.sha256()
        for name, packed in sorted(self.packed.items()):
            found.update(f"{name} {packed.format.name}".encode())
            for part, tensor in sorted(packed.tensors.items()):
                found.update(part.encode())
                found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    def frozen(self, work: torch.dtype) -> Any:
        """The 16-bit model with the written codes in it, none of which is trained."""
        return self._with(work, lambda module, _, packed: QuantLinear(PackedWeight(packed), _bias(module)))

    def _with(self, work: torch.dtype, layer: Callable[[Any, Weight, Packed], nn.Module]) -> Any:
        """The 16-bit model with what ``layer`` makes of each linear that is quantized, and its vocabulary as written."""
        model = load(self.directory, self.subject.device, work)
        for weight in self.subject.source.spec.weights:
            packed = self.packed[weight.name].to(self.subject.device) if weight.name in self.packed else None
            if weight.kind is Kind.LINEAR:
                module = model.get_submodule(weight.module)
                _replace(model, weight, layer(module, weight, packed) if packed else as_it_is(module))
            elif packed:
                _put_vocabulary(model, weight, packed)
        head = model.get_output_embeddings()
        if not isinstance(head, QuantLinear):
            model.set_output_embeddings(as_it_is(head))
        return model


@dataclass(frozen=True)
class Finished(Stored):
    """A checkpoint that ``quantize`` wrote, with its ``plan``."""

    plan: Plan

    @classmethod
    def open(cls, path: Path, source: str, settings: Settings) -> Self:
        """Open what ``quantize`` wrote at ``path`` from ``source``; the name that its plan knows where that is empty.

        Raises BitwrightError for another checkpoint, and a source that is not there or is another one.
        """
        plan = plan_of(path)
        subject = Subject.open(original_of(path, source), replace(settings, container=plan.container))
        _require_same_source(plan, subject, path)
        return cls(path, subject, subject.container.read(path, subject.source.spec.weights), plan)

    def model(
        self,
        work: torch.dtype,
        rank: int = 0,
        alpha: float = 16.0,
        codes_below: float = math.inf,
        targets: tuple[str, ...] = ("*",),
        parts: tuple[str, ...] = (TEXT,),
    ) -> Any:
        """The 16-bit model with the written codes in it. Those of the linears of ``parts`` whose names match ``targets`` are
        trained.

        ``rank`` > 0: low-rank changes are trained instead of whole weights. Of weights that take ``codes_below`` bits or more
        the codes stay, and scales and minima are trained. Raises BitwrightError where no part or name matches.
        """
        weights = self.subject.source.spec.weights
        part = {w.module: w.group.partition("-")[0] for w in weights if w.kind is Kind.LINEAR and w.name in self.packed}
        trained = set(matching(of_parts(part, parts), targets))

        def snapped(module: Any, weight: Weight, packed: Packed) -> nn.Module:
            if weight.module not in trained:
                return QuantLinear(PackedWeight(packed), _bias(module))
            rounder = self.subject.container.rounder(packed.format)
            coarse = bits_of(packed) < codes_below
            value = weight.view.matrix(module.weight.data).float() if coarse else None
            return SnappedLinear(packed, rounder, value, _bias(module), rank, alpha).to(module.weight.device)

        return self._with(work, snapped)

    def write(self, place: Path, trained: Mapping[str, Packed]) -> None:
        """The same checkpoint at ``place`` with the codes of ``trained``, and the texts that go with it."""

        def packed_of(weight: Weight, format: str, rounding: Rounding) -> Packed:
            return trained.get(weight.name) or self.packed[weight.name]

        written = self.subject.container.write({place: self.plan}, self.subject.source, packed_of)
        if written[place] != self.plan.nbytes:
            raise AssertionError(f"the plan counts {self.plan.nbytes} bytes, the files hold {written[place]}")
        for name in self._texts():
            path, target = beside(self.path, name), beside(place, name)
            if path.is_file() and not target.exists():
                shutil.copyfile(path, target)

    def _texts(self) -> Sequence[str]:
        """What lies beside the weights and is ours: in a directory everything."""
        return [path.name for path in sorted(self.path.iterdir())] if self.path.is_dir() else BESIDE


def bits_of(packed: Packed) -> float:
    """What each weight takes, its share of the scales included."""
    n_rows, n_cols = packed.shape
    return 8 * sum(tensor.nbytes for tensor in packed.tensors.values()) / (n_rows * n_cols)


def trained_codes(model: Any) -> dict[str, Packed]:
    """The codes of every trained layer, by the name of its weight."""
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, SnappedLinear))
    return {f"{name}.weight": layer.packed().to("cpu") for name, layer in layers}


def fits_kept(model: Any, n_tokens: int) -> bool:
    """Whether this machine has room for all that the backward pass of ``n_tokens`` needs, so that nothing is recomputed.

    Activations in 32 bit (estimate/training.py counts those of 16 bit), without the logits, which our loss never holds at
    once, and of each snapped weight its level, its value and whether it is beyond the last level.
    """
    layers = [module for module in model.modules() if isinstance(module, SnappedLinear)]
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    kept = activation_nbytes(model.config.get_text_config().to_dict() | {"vocab_size": 0}, n_tokens, 1, KEPT)
    return bool(2 * kept + (4 + 4 + 1) * weights < MEMORY_SHARE * total_nbytes())


def _bias(module: Any) -> Tensor | None:
    return None if module.bias is None else module.bias.data


def _replace(model: Any, weight: Weight, layer: nn.Module) -> None:
    owner, _, attribute = weight.module.rpartition(".")
    setattr(model.get_submodule(owner), attribute, layer)


def _put_vocabulary(model: Any, weight: Weight, packed: Packed) -> None:
    """Embedding and head as the file has them; they are not trained."""
    if weight.kind is not Kind.HEAD:
        rows = model.get_input_embeddings().weight
        rows.data = unpacked(packed).decode().to(rows)
    if weight.kind is not Kind.EMBEDDING:
        model.set_output_embeddings(QuantLinear(PackedWeight(packed)))


def _require_same_source(plan: Plan, subject: Subject, path: Path) -> None:
    known, found = plan.provenance.get("fingerprint"), subject.source.checkpoint.fingerprint
    if known != found:
        raise fail(
            "finetune/other-source",
            subject.name,
            saw="other weights than those that the checkpoint was made of",
            wanted=f"the source of {path}",
            help="--source DIRECTORY",
        )
