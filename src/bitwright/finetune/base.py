"""What an adapter is trained beside: a model that transformers loads, a .gguf file, or what ``quantize`` wrote for others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from bitwright.checkpoint.demo import DEMO_MODEL
from bitwright.checkpoint.open import local_directory
from bitwright.checkpoint.output import PROOF, beside
from bitwright.checkpoint.result import original_of, plan_of
from bitwright.containers.bitsandbytes import BITSANDBYTES
from bitwright.containers.gguf.container import GGUF
from bitwright.finetune.finished import Finished, Stored
from bitwright.finetune.model import load, require_trainable
from bitwright.finetune.train import changes_of
from bitwright.finetune.training import Training
from bitwright.settings import Settings


@dataclass(frozen=True)
class Base:
    """``directory``: with weights or a configuration, tokenizer and processor. ``name``: under which PEFT loads the model.
    ``stored``: the file whose codes are trained beside, where transformers does not hold them packed."""

    directory: Path
    name: str
    stored: Stored | None = None

    @classmethod
    def of(cls, model: str | Path, training: Training) -> Base:
        """Raises BitwrightError for a checkpoint that cannot be kept packed, and where its 16-bit model is not to be had."""
        path, settings = Path(os.path.expanduser(model)), Settings(device=training.device, dtype=training.dtype)
        if _is_for_another_program(path):
            finished = Finished.open(path, training.source, settings)
            return cls(finished.directory, base_of(training.source or finished.plan.source), finished)
        if path.suffix == GGUF.suffix and path.is_file() and (stored := Stored.of_gguf(path, settings)):
            return cls(stored.directory, base_of(training.source or str(stored.directory)), stored)
        directory = local_directory(model)
        require_trainable(directory)
        return cls(directory, base_of(model))

    @property
    def path(self) -> Path:
        """Where the weights lie that the adapter is for."""
        return self.stored.path if self.stored else self.directory

    def load(self, device: torch.device, work: torch.dtype) -> Any:
        """The model, frozen."""
        return self.stored.frozen(work) if self.stored else load(self.directory, device, work)

    def key(self) -> list[object]:
        """What is different where the weights are."""
        if self.stored:
            return [self.stored.digest()]
        files = sorted(self.directory.glob("*.safetensors"))
        return [str(self.directory.resolve()), [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]]

    def for_its_program(self, place: Path, model: Any, training: Training) -> str:
        """Write to ``place`` what the program of ``stored`` loads instead of PEFT's files; how that is done, as Markdown."""
        if self.stored is None:
            return ""
        subject, name = self.stored.subject, self.stored.path.name
        return subject.container.write_adapter(place, subject.source, changes_of(model), training.strength, name)


def directory_of(model: str | Path, source: str = "") -> Path:
    """Where the tokenizer of ``model`` lies, and its processor."""
    path = Path(os.path.expanduser(model))
    return original_of(path, source) if _is_for_another_program(path) else local_directory(model)


def is_packed(model: str | Path) -> bool:
    """Whether the weights of ``model`` are quantized in its files. A .gguf file counts as it is."""
    path = Path(os.path.expanduser(model))
    if path.suffix == ".gguf" or _is_for_another_program(path):
        return True
    return getattr(AutoConfig.from_pretrained(local_directory(model)), "quantization_config", None) is not None


def _is_for_another_program(path: Path) -> bool:
    """Whether ``quantize`` wrote the checkpoint at ``path`` for a program other than transformers."""
    return beside(path, PROOF).exists() and plan_of(path).container != BITSANDBYTES.name


def base_of(model: str | Path) -> str:
    """The name under which others load what an adapter was trained for."""
    if str(model) == "demo-vision":  # which is nowhere but here
        return str(local_directory(model))
    return DEMO_MODEL if str(model) == "demo" else str(model)
