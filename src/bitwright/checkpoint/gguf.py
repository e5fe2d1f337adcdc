"""A .gguf source becomes a 16-bit safetensors directory once, through transformers' own reader."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bitwright.checkpoint.cached import kept_folder, sha256
from bitwright.checkpoint.gguf_header import read_gguf_header, require_whole
from bitwright.errors import BitwrightError, fail, in_one_line

LONGEST_STEM = 100  # characters of a file's name that go into that of its folder


def convert_gguf(path: Path, cache: Path) -> Path:
    """Directory in ``cache`` with the weights of ``path`` dequantized to bfloat16, its config and tokenizer.

    The name carries the file's SHA-256, so that an edited file is converted anew. Raises BitwrightError for a file that is
    not sound or of an architecture that transformers does not read.
    """
    require_whole(read_gguf_header(path), path)
    target = cache / "gguf" / f"{path.stem[:LONGEST_STEM]}-{sha256(path)[:16]}"
    try:
        return kept_folder(target, partial(_convert, path.resolve()))
    except BitwrightError:
        raise
    except Exception as error:  # whatever the library raises for a stranger's file
        raise fail(
            "source/gguf",
            path,
            saw=in_one_line(error),
            wanted="a GGUF file of an architecture that transformers reads",
            help="name the 16-bit model directory that the file was made from",
        ) from error


def _convert(path: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model, found = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        output_loading_info=True,
    )
    if missing := sorted(found["missing_keys"]):  # they would be random numbers
        raise fail(
            "source/gguf-tensors",
            path,
            saw=f"no tensor for {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            wanted="every tensor of the architecture",
            help="bitwright doctor FILE, or name the 16-bit model directory that the file was made from",
        )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(out)
