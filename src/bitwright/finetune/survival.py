"""What became of a trained change in a file: how many codes moved, and how much of the change the file holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from bitwright.finetune.finished import Finished
from bitwright.finetune.train import ADAPTER, CONFIG
from bitwright.formats.base import Packed
from bitwright.formats.families import unpacked
from bitwright.host.texts import read_object
from bitwright.models.source import Source

OF_PEFT = "base_model.model."  # before the name of each module


def moved(before: Mapping[str, Packed], after: Mapping[str, Packed]) -> float:
    """Share of the codes of the weights ``after`` that are others than ``before``; NaN where no weight is in one format."""
    same = [(before[name], packed) for name, packed in after.items() if name in before]
    pairs = [(unpacked(old).chosen, unpacked(new).chosen) for old, new in same if old.format == new.format]
    count = sum(old.numel() for old, _ in pairs)
    return sum(int((old != new).sum()) for old, new in pairs) / count if count else math.nan


def changes_in(adapter: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """By the names of modules A [R, K] and B [N, R] of the adapter in the directory ``adapter``, whose change is B A."""
    config, tensors = read_object(adapter / CONFIG), load_file(adapter / ADAPTER)
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    strength = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {
        name.removeprefix(OF_PEFT): (
            tensors[f"{name}.lora_A.weight"].float(),
            strength * tensors[f"{name}.lora_B.weight"].float(),
        )
        for name in names
    }


@torch.no_grad()
def survived(changes: Mapping[str, tuple[Tensor, Tensor]], finished: Finished, original: Source) -> float:
    """How much of ``changes`` the weights of ``finished`` hold, beside those of the ``original`` model.

    sum <W' - W, D> / sum <D, D> over the changed weights, D = B A: 1 where the change came through, 0 where rounding has erased
    it. What rounding adds besides is as often along D as against it.
    """
    source, along, whole = finished.subject.source, 0.0, 0.0
    for weight in source.spec.weights:
        if weight.module not in changes:
            continue
        a, b = changes[weight.module]
        packed, change = finished.packed.get(weight.name), b @ a
        now = unpacked(packed).decode() if packed else weight.view.matrix(source.read(weight.name)).float()
        along += float(((now - weight.view.matrix(original.read(weight.name)).float()) * change).double().sum())
        whole += float(change.double().square().sum())
    return along / whole if whole else math.nan
