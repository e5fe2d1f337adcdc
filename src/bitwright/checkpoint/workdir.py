"""The work directory: finished pieces of a run, each under a hash of everything it depends on."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from bitwright.checkpoint.headers import read_header
from bitwright.checkpoint.output import write_failed, write_json
from bitwright.checkpoint.tensors import read_tensor
from bitwright.checkpoint.writer import ShardWriter, TensorPlan


def content_hash(*parts: Any) -> str:
    """Short hash of JSON-able values; equal values give equal hashes on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


class WorkDir:
    """Pieces are files that appear whole or not at all, so a killed run finds what it finished and nothing else."""

    def __init__(self, directory: Path, key: str) -> None:
        """``key``: hash of the source, calibration and settings; another key uses another folder of ``directory``."""
        self.directory = directory / key
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failed(directory, error) from error

    def path(self, piece: str) -> Path:
        return self.directory / piece

    def has(self, piece: str) -> bool:
        return self.path(piece).exists()

    def drop(self, piece: str) -> None:
        self.path(piece).unlink(missing_ok=True)

    def save_tensors(self, piece: str, tensors: dict[str, Tensor]) -> None:
        scratch = self.path(f".{piece}.partial")
        try:
            writer = ShardWriter(scratch, [TensorPlan.like(name, tensor) for name, tensor in tensors.items()])
            try:
                for name, tensor in tensors.items():
                    writer.put(name, tensor)
            finally:
                writer.release()
            os.replace(scratch, self.path(piece))
        except OSError as error:
            scratch.unlink(missing_ok=True)
            raise write_failed(self.directory, error) from error

    def load_tensors(self, piece: str, prefix: str = "") -> dict[str, Tensor]:
        """The tensors of ``piece`` whose names begin with ``prefix``, by the rest of their names."""
        refs = read_header(self.path(piece)).items()
        return {name.removeprefix(prefix): read_tensor(ref) for name, ref in refs if name.startswith(prefix)}

    def save_json(self, piece: str, value: Any) -> None:
        write_json(self.path(piece), value)

    def load_json(self, piece: str) -> Any:
        return json.loads(self.path(piece).read_text(encoding="utf-8"))


def finite(value: Any) -> Any:
    """``value`` for JSON, which knows no NaN and no infinity: null in their place."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
