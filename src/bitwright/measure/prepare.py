"""From a skeleton and the user's words to folds of token sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.checkpoint.workdir import WorkDir
from bitwright.errors import fail
from bitwright.measure.calibration import Folds, fold, read_domains, read_texts, sequences_of
from bitwright.measure.documentation import documentation
from bitwright.models.skeleton import Skeleton
from bitwright.progress import Reporter

SELF, DOCUMENTATION = "self", "documentation"


def tokenizer_of(directory: Path, trust_remote_code: bool = False) -> Any:
    """The model's own tokenizer; raises BitwrightError when the directory has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise fail(
            "calibration/tokenizer",
            directory,
            saw=str(error).strip().splitlines()[0],
            wanted="a tokenizer beside the weights",
            help="copy tokenizer.json and tokenizer_config.json into the directory",
        ) from error


def calibration_folds(
    skeleton: Skeleton,
    tokenizer: Any,
    calibration: str,
    *,
    count: int,
    length: int,
    seed: int,
    device: torch.device,
    work: WorkDir,
    reporter: Reporter,
) -> Folds:
    """Folds from ``calibration``: a file, a datasets id, ``documentation``, or ``self`` (kept in ``work`` once written)."""
    if calibration == SELF:
        piece = "calibration.safetensors"
        if not work.has(piece):
            work.save_tensors(piece, {"ids": _self_written(skeleton, tokenizer, count, length, seed, device, reporter)})
        return fold(work.load_tensors(piece)["ids"], "text that the model wrote itself", seed)
    texts = documentation(0, 2) if calibration == DOCUMENTATION else read_texts(calibration, tokenizer)
    return fold(sequences_of(texts, tokenizer, count, length, calibration), calibration, seed)


def held_out_ids(tokenizer: Any, source: str, count: int, length: int) -> Tensor:
    """Sequences [count, length] for the verdict: ``documentation`` (the half that calibration never reads) or a file."""
    return held_out_domains(tokenizer, source, count, length)[0]


def held_out_domains(tokenizer: Any, source: str, count: int, length: int) -> tuple[Tensor, tuple[str, ...]]:
    """The same and the domain of each sequence, where the rows of a file name domains: as many of each as ``count`` allows,
    and never fewer than two, which an interval needs."""
    texts = {"": documentation(1, 2)} if source == DOCUMENTATION else read_domains(source, tokenizer)
    if len(texts) == 1:
        name, only = texts.popitem()
        ids = sequences_of(only, tokenizer, count, length, source)
        return ids, (name,) * len(ids)
    parts, names = [], []
    for name, of_domain in texts.items():
        share = max(2, count // len(texts))
        parts.append(sequences_of(of_domain, tokenizer, share, length, f"{source}, domain {name}", least=2))
        names += [name] * len(parts[-1])
    return torch.cat(parts), tuple(names)


def _self_written(
    skeleton: Skeleton, tokenizer: Any, count: int, length: int, seed: int, device: torch.device, reporter: Reporter
) -> Tensor:
    from transformers import AutoModelForCausalLM

    from bitwright.measure.openings import write_itself

    model: Any = AutoModelForCausalLM.from_pretrained(skeleton.checkpoint.directory, dtype=torch.bfloat16)
    model = model.to(device).eval()
    return write_itself(model, tokenizer, count, length, seed, reporter)
