"""The model families that a GGUF file can be written for, and how each one's tensors and settings differ (data).

Sources: conversion scripts and model definitions of llama.cpp; tests/containers/test_gguf.py runs every row in llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, VisionProjectorType

from bitwright.errors import fail


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


QWEN2_VL = Family(MODEL_ARCH.QWEN2VL)
QWEN3_VL = Family(MODEL_ARCH.QWEN3VL)


@dataclass(frozen=True)
class Seeing:
    """A class with a vision tower, and what llama.cpp calls the way from tower to text.

    Tower and projector are a second file, ``mmproj``.
    """

    tower: str  # what transformers calls the tower
    projector: str
    text: Family | None = None  # where no class of those above has it alone
    spelled: tuple[tuple[str, str], ...] = ()  # beginnings and parts of names that the library's table has otherwise
    cut_qkv: bool = False  # queries, keys and values in one parameter are three tensors
    cut_frames: bool = False  # patches of two frames are two tensors
    offset_norm: str = ""  # the end of a norm's name that is stored with 1 added
    pairs_rotated: bool = False  # as in a family, of the tower
    row_end: str = ""  # the token between two rows of an image, whose embedding is in the second file too
    unused: str = ""  # a part of the tower that the class never calls, and llama.cpp would
    wrong: str = ""  # what llama.cpp does otherwise, if it does: such models are refused


_OF_QWEN = ("model.visual.", "visual.")
_OF_QWEN3 = (
    ("visual.merger.linear_fc1.", "visual.merger.mlp.0."),
    ("visual.merger.linear_fc2.", "visual.merger.mlp.2."),
    ("visual.merger.norm.", "visual.merger.ln_q."),
    ("visual.deepstack_merger_list.", "model.visual.deepstack_merger_list."),
)
_SIGLIP = ("model.vision_tower.", "vision_tower.vision_model.")
_PROJECTOR = ("model.multi_modal_projector.", "multi_modal_projector.")
_OF_GEMMA = (_SIGLIP, _PROJECTOR, ("mm_input_projection_weight", "mm_input_projection.weight"))
_OF_LLAVA = (_SIGLIP, ("model.multi_modal_projector.linear_1.", "multi_modal_projector.linear_0."), _PROJECTOR)
_OF_PIXTRAL = (("model.vision_tower.", "vision_tower."), _PROJECTOR)
_OF_INTERN = (
    ("model.multi_modal_projector.layer_norm.", "mlp1.0."),
    ("model.multi_modal_projector.linear_1.", "mlp1.1."),
    ("model.multi_modal_projector.linear_2.", "mlp1.3."),
    (".lambda_1", ".lambda_1.weight"),
    (".lambda_2", ".lambda_2.weight"),
    (".position_embeddings", ".position_embeddings.weight"),
)
LLAVA = "mlp"  # llama.cpp's oldest projector, which the library has no name for
_PIXTRAL = Seeing("pixtral", VisionProjectorType.PIXTRAL, None, _OF_PIXTRAL, pairs_rotated=True, row_end="[IMG_BREAK]")
SEEING: dict[str, tuple[Seeing, ...]] = {
    "Idefics3ForConditionalGeneration": (Seeing("idefics3_vision", VisionProjectorType.IDEFICS3),),
    "SmolVLMForConditionalGeneration": (Seeing("smolvlm_vision", VisionProjectorType.IDEFICS3),),
    "Gemma3ForConditionalGeneration": (
        Seeing("siglip_vision_model", VisionProjectorType.GEMMA3, None, _OF_GEMMA, offset_norm="mm_soft_emb_norm.weight"),
    ),
    "Qwen2VLForConditionalGeneration": (
        Seeing("qwen2_vl_vision", VisionProjectorType.QWEN2VL, QWEN2_VL, (_OF_QWEN,), cut_qkv=True, cut_frames=True),
    ),
    "Qwen2_5_VLForConditionalGeneration": (
        Seeing("qwen2_5_vl_vision", VisionProjectorType.QWEN25VL, QWEN2_VL, (_OF_QWEN,), cut_qkv=True, cut_frames=True),
    ),
    "Qwen3VLForConditionalGeneration": (
        Seeing("qwen3_vl_vision", VisionProjectorType.QWEN3VL, QWEN3_VL, (_OF_QWEN, *_OF_QWEN3), cut_frames=True),
    ),
    "InternVLForConditionalGeneration": (Seeing("internvl_vision", VisionProjectorType.INTERNVL, None, _OF_INTERN),),
    "LlavaForConditionalGeneration": (
        Seeing("siglip_vision_model", LLAVA, None, _OF_LLAVA, unused="post_layernorm."),
        Seeing("clip_vision_model", LLAVA, wrong="a class token, which llama.cpp takes for the last patch (its issue 25814)"),
        _PIXTRAL,
    ),
    "Mistral3ForConditionalGeneration": (_PIXTRAL,),
}
WINDOWED = (MODEL_ARCH.PHI3, MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3)  # llama.cpp slides a window for these and no other


def text_family(arch: str) -> Family:
    """The family that a file of ``arch`` holds. Raises BitwrightError for one that we do not write."""
    every = (*FAMILIES.values(), *(seeing.text for kinds in SEEING.values() for seeing in kinds if seeing.text))
    found = next((family for family in every if MODEL_ARCH_NAMES[family.arch] == arch), None)
    return found or _unknown("general.architecture", arch)


def seeing_with(projector: str) -> Seeing:
    """The family of a second file with ``projector``. Raises BitwrightError for one that we do not write."""
    found = next((seeing for kinds in SEEING.values() for seeing in kinds if seeing.projector == projector), None)
    return found or _unknown("clip.projector_type", projector)


def _unknown(key: str, value: str) -> NoReturn:
    raise fail(
        "gguf/family", key, saw=value, wanted="a file that bitwright quantize wrote", help="bitwright quantize MODEL OUT.gguf"
    )
