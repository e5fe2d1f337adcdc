"""An output head that is missing, or stored beside an embedding that it should be.

Without `lm_head.weight` and without tying, a loader starts the head at random and only warns. With tying and a stored
head, one of the two copies is ignored, and a fine-tune that changed the other is lost.

Source: https://github.com/vllm-project/vllm/pull/3344 (Qwen1.5-0.5B-Chat came with a head that it does not use);
https://github.com/NVIDIA-NeMo/Automodel/issues/2571 (a head that had moved away from the embedding).
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.errors import Finding, Severity


def check(model: Model) -> Iterator[Finding]:
    if not model.speaks or model.embedding is None:
        return
    if model.head is None and not model.ties_embeddings:
        yield Finding(
            "weights/no-head",
            "config.json",
            "tie_word_embeddings is off and no output head is stored",
            "a head, or an embedding that is one",
            'set "tie_word_embeddings": true if the original model ties them',
        )
    elif model.head is not None and model.ties_embeddings:
        yield Finding(
            "weights/tied-twice",
            model.head.name,
            "stored, though the head is tied to the embedding",
            "one copy",
            'compare the two: where they differ, set "tie_word_embeddings": false; where not, leave the head out',
            Severity.NOTE,
        )
