"""The model on the table: opened, described and examined, before anything slow begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bitwright.checkpoint.open import open_checkpoint
from bitwright.containers.base import Container
from bitwright.containers.gguf.imatrix import read_imatrix
from bitwright.containers.registry import container_of
from bitwright.data.calibration import calibration_of, sequences_of, shows_pictures
from bitwright.data.tokenizer import tokenizer_of
from bitwright.data.viewer import Viewer, viewer_of
from bitwright.doctor.doctor import examine, in_lines
from bitwright.errors import fail
from bitwright.host.device import Precision, device_of, precision_of
from bitwright.host.heap import return_large_blocks
from bitwright.measure.memory import fit
from bitwright.measure.method import Method
from bitwright.measure.scores import WeightScores
from bitwright.measure.table import table_of
from bitwright.models.open import open_model
from bitwright.models.skeleton import Skeleton
from bitwright.models.source import Source
from bitwright.models.spec import PROJECTOR, Weight
from bitwright.models.stacks import VISION
from bitwright.sensitivity import Sensitivity
from bitwright.settings import Settings


@dataclass(frozen=True)
class Subject:
    """A source and how it will be measured. ``notes``: what a user should know before it takes long."""

    name: str  # as the user typed it
    settings: Settings
    container: Container
    skeleton: Skeleton
    tokenizer: Any
    viewer: Viewer | None  # of a model that sees
    method: Method
    device: torch.device
    precision: Precision
    notes: tuple[str, ...]

    @property
    def source(self) -> Source:
        return self.skeleton.source

    @classmethod
    def open(cls, name: str | Path, settings: Settings, formats: tuple[str, ...] = (), to_write: bool = False) -> Subject:
        """Open ``name`` for the container of ``settings``. ``formats``: also measured, for a plan that asks for them.
        ``to_write``: a checkpoint will be written, which carries no code of the source.

        Raises BitwrightError for a source or settings that cannot be carried out.
        """
        container = container_of(settings.container)
        checkpoint = open_checkpoint(name)
        if to_write and settings.trust_remote_code:
            _require_own_class(checkpoint.config, container)
        skeleton = open_model(checkpoint, settings.trust_remote_code, container.vocabulary)
        source, spec = skeleton.source, skeleton.spec
        settings = replace(settings, sequences=settings.sequences or sequences_of(settings, spec))
        container.require(source)
        return_large_blocks(max(w.n_rows * w.n_cols for w in spec.weights))
        device = device_of(settings.device)
        precision = precision_of(settings.dtype, device)
        importance = read_imatrix(Path(settings.imatrix), source) if settings.imatrix else {}
        method = Method.of(container, spec, settings.formats, importance, settings.seed).with_formats(container, spec, formats)
        notes = in_lines(examine(checkpoint.directory)) + container.notes()
        tokenizer = tokenizer_of(checkpoint.directory, settings.trust_remote_code)
        viewer, left_out = viewer_of(checkpoint.directory, checkpoint.config, tokenizer)
        notes += (left_out,) if left_out else ()
        method = fit(spec, method, settings, precision, viewer.patches() if viewer else 0)
        return cls(str(name), settings, container, skeleton, tokenizer, viewer, method, device, precision, notes)

    def blank_table(self) -> Sensitivity:
        """The table with all bytes and no damage, so that a budget can be refused before anything slow."""
        calibration, _ = calibration_of(self.settings, self.skeleton)
        sees = shows_pictures(calibration, self.viewer is not None)
        blank = [
            self.method.unmeasured(weight) if sees or not of_pictures(weight) else WeightScores(weight.name, 0.0, ())
            for weight in self.skeleton.spec.weights
        ]
        return table_of(self.name, self.container, self.method, self.source, blank, {})


def of_pictures(weight: Weight) -> bool:
    """Whether nothing but pictures passes ``weight``."""
    return weight.group.partition("-")[0] in (VISION, PROJECTOR)


def _require_own_class(config: dict[str, Any], container: Container) -> None:
    """Raise where the written checkpoint would need code of the source; a single file needs none."""
    if "auto_map" in config and not container.suffix:
        raise fail(
            "source/code",
            "config.json",
            saw="auto_map: the model is built by code that it brings along",
            wanted="a class that transformers has, since a written checkpoint carries no code",
            help="bitwright quantize SOURCE OUT.gguf where llama.cpp knows the family, or bitwright measure SOURCE",
        )
