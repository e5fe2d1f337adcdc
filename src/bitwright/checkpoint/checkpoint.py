"""A checkpoint: a directory of safetensors with its config, tensors unread (no torch until one is)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.checkpoint.headers import TensorRef, read_headers, require_plain
from bitwright.checkpoint.limits import require_limits
from bitwright.errors import BitwrightError, fail
from bitwright.host.texts import UnreadableError, read_object

if TYPE_CHECKING:
    from torch import Tensor


ADAPTER = "adapter_config.json"  # of PEFT


@dataclass(frozen=True)
class Checkpoint:
    """A 16-bit model on disk. ``source`` is what the user typed, ``directory`` where the files lie."""

    source: str
    directory: Path
    refs: dict[str, TensorRef]
    config: dict[str, Any]

    @classmethod
    def of_directory(cls, directory: Path, source: str | None = None) -> Checkpoint:
        """Read config and headers. Raises BitwrightError when they are missing, broken or already quantized."""
        path = directory / "config.json"
        if not path.exists() and (directory / ADAPTER).exists():
            raise _is_adapter(directory)
        try:
            config = read_object(path)
        except UnreadableError as error:
            raise fail(
                "checkpoint/config",
                path,
                saw=str(error),
                wanted="a model directory has a config.json",
                help="name a directory written by save_pretrained, a hub id, a .gguf file, or demo",
            ) from None
        require_limits(config, path)
        if config.get("quantization_config") is not None:
            stated = config["quantization_config"]
            method = stated.get("quant_method", "unknown") if isinstance(stated, dict) else str(stated)[:40]
            raise fail(
                "checkpoint/quantized",
                path,
                saw=f"quantization_config with method {method}",
                wanted="the source is a 16-bit or 32-bit model",
                help="name the model it was quantized from",
            )
        return cls(source or str(directory), directory, require_plain(read_headers(directory)), config)

    def read(self, name: str) -> Tensor:
        """The values of tensor ``name``; raises BitwrightError when they are truncated, NaN or infinite."""
        from bitwright.checkpoint.tensors import read_tensor, require_finite  # torch loads here and not before

        return require_finite(self.refs[name], read_tensor(self.refs[name]))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over config and weight files."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for path in sorted({ref.file for ref in self.refs.values()}):
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def _is_adapter(directory: Path) -> BitwrightError:
    """The error for a LoRA adapter that was named where a model is wanted."""
    try:
        base = str(read_object(directory / ADAPTER).get("base_model_name_or_path") or "BASE")[:200]
    except UnreadableError:
        base = "BASE"
    return fail(
        "checkpoint/adapter",
        directory,
        saw="a LoRA adapter, which is only the change of a model",
        wanted=f"a whole model: the adapter merged into {base}",
        help=f"in Python: peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), "
        f"{str(directory)!r}).merge_and_unload().save_pretrained('MERGED')",
    )
