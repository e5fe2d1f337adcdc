"""Tied matrices that differ.

The configuration ties the output head to the embedding, yet both are stored and differ. Runtimes take one or the
other, and give different answers.

Source: https://github.com/NVIDIA-NeMo/Automodel/issues/2571.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.doctor.statistics import Statistics, same_values
from bitwright.errors import Finding


def check(model: Model, statistics: list[Statistics]) -> Iterator[Finding]:
    embedding, head = model.embedding, model.head
    if embedding is not None and head is not None and model.ties_embeddings and not same_values(embedding, head):
        yield Finding(
            "weights/tied-differ",
            head.name,
            f"differs from {embedding.name}, to which config.json ties it",
            "equal matrices",
            'set "tie_word_embeddings": false if the head was trained, or leave the head out',
        )
