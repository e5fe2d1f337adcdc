"""A .gguf source becomes a 16-bit safetensors directory once, through transformers' own reader."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from bitwright.checkpoint.gguf_header import read_gguf_header
from bitwright.errors import fail


def convert_gguf(path: Path, cache: Path) -> Path:
    """Directory in ``cache`` with the weights of ``path`` dequantized to bfloat16, its config and tokenizer.

    The name carries the file's SHA-256, so that an edited file is converted anew. Raises BitwrightError for a file that is
    not sound or of an architecture that transformers does not read.
    """
    read_gguf_header(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = cache / "gguf" / f"{path.stem}-{digest[:16]}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        _convert(path.resolve(), scratch)
        scratch.replace(target)
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise fail(
            "source/gguf",
            path,
            saw=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            wanted="a GGUF file of an architecture that transformers reads",
            help="name the 16-bit model directory that the file was made from",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert(path: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(out)
