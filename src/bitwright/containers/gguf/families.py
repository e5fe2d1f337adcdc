"""The model families that a GGUF file can be written for, and how each one's tensors and settings differ (data).

Sources: conversion scripts and model definitions of llama.cpp; tests/containers/test_gguf.py runs every row in llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf import MODEL_ARCH, VisionProjectorType


@dataclass(frozen=True)
class Family:
    """One architecture of llama.cpp, and what transformers stores otherwise."""

    arch: MODEL_ARCH
    pairs_rotated: bool = False  # rotary dimensions of a head lie as pairs (2 i, 2 i + 1), not as halves: q and k rows move
    norm_offset: float = 0.0  # added to norm weights: the class multiplies with 1 + weight
    fused_rope: bool = False  # rotary dimensions are counted from a partial_rotary_factor
    always_window: bool = False  # a window of 0 says that there is none; left out it would be guessed


FAMILIES = {
    "LlamaForCausalLM": Family(MODEL_ARCH.LLAMA, pairs_rotated=True),
    "MistralForCausalLM": Family(MODEL_ARCH.LLAMA, pairs_rotated=True),
    "Qwen2ForCausalLM": Family(MODEL_ARCH.QWEN2),
    "Qwen3ForCausalLM": Family(MODEL_ARCH.QWEN3),
    "Phi3ForCausalLM": Family(MODEL_ARCH.PHI3, fused_rope=True, always_window=True),
    "GemmaForCausalLM": Family(MODEL_ARCH.GEMMA, norm_offset=1.0),
    "Gemma2ForCausalLM": Family(MODEL_ARCH.GEMMA2, norm_offset=1.0),
    "Gemma3ForCausalLM": Family(MODEL_ARCH.GEMMA3, norm_offset=1.0),
}


@dataclass(frozen=True)
class Seeing:
    """A class with a vision tower: its text as a family of its own, and what llama.cpp calls the way from one to the other.

    Tower and projector are a second file, ``mmproj``.
    """

    text: Family
    projector: str


_IDEFICS = Seeing(FAMILIES["LlamaForCausalLM"], VisionProjectorType.IDEFICS3)
SEEING = {"Idefics3ForConditionalGeneration": _IDEFICS, "SmolVLMForConditionalGeneration": _IDEFICS}
WINDOWED = (MODEL_ARCH.PHI3, MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3)  # llama.cpp slides a window for these and no other
