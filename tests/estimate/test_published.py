"""Published sizes of models that are not here, from the numbers in their configurations."""

from typing import Any

import pytest

from bitwright.estimate.shapes import VISION, parts, text_config
from bitwright.estimate.storage import SIXTEEN, stored_nbytes

GB, GIB = 10**9, 2**30
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "image_size": 896, "patch_size": 14}
QWEN2_VL = {"embed_dim": 1280, "depth": 32, "mlp_ratio": 4, "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2}
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")


def dense(kind: str, *numbers: int, **others: Any) -> dict[str, Any]:
    return {"model_type": kind, **dict(zip(NAMES, numbers, strict=True)), **others}


def gemma3(head_dim: int, *numbers: int, sees: bool = True) -> dict[str, Any]:
    text = dense("gemma3_text", *numbers, head_dim=head_dim)
    return {"model_type": "gemma3", "text_config": text, "vision_config": SIGLIP} if sees else text


GEMMA_27B = gemma3(128, 5376, 21504, 62, 32, 16, 262208)
GEMMA_12B = gemma3(256, 3840, 15360, 48, 16, 8, 262208)
GEMMA_4B = gemma3(256, 2560, 10240, 34, 8, 4, 262208)
GEMMA_1B = gemma3(256, 1152, 6912, 26, 4, 1, 262144, sees=False)
LLAMA_7B = dense("llama", 4096, 11008, 32, 32, 32, 32000, tie_word_embeddings=False)
LLAMA_13B = dense("llama", 5120, 13824, 40, 40, 40, 32000, tie_word_embeddings=False)
MISTRAL_7B = dense("mistral", 4096, 14336, 32, 32, 8, 32000, tie_word_embeddings=False)
QWEN2_VL_2B = {
    "model_type": "qwen2_vl", "vision_config": QWEN2_VL,
    "text_config": dense("qwen2_vl_text", 1536, 8960, 28, 12, 2, 151936, tie_word_embeddings=True),
}  # fmt: skip


@pytest.mark.parametrize(("config", "billion"), [
    (GEMMA_27B, 27.432), (GEMMA_12B, 12.187), (GEMMA_4B, 4.300), (GEMMA_1B, 1.000), (LLAMA_7B, 6.738), (LLAMA_13B, 13.016),
    (MISTRAL_7B, 7.242), (QWEN2_VL_2B, 2.209),
])  # fmt: skip
def test_parameters_are_those_of_the_hub(config: dict[str, Any], billion: float) -> None:
    """The counts that the hub shows beside each model."""
    assert sum(part.n_parameters for part in parts(config)) / 1e9 == pytest.approx(billion, abs=6e-4)


@pytest.mark.parametrize(("config", "published"), [(GEMMA_27B, 54), (GEMMA_12B, 24), (GEMMA_4B, 8), (GEMMA_1B, 2)])
def test_gemma_3_in_bfloat16(config: dict[str, Any], published: int) -> None:
    """Google's table of memory to load Gemma 3: decimal gigabytes of the language model, its tower not counted."""
    text = [part for part in parts(config) if part.role != VISION]
    assert round(2 * sum(part.n_parameters for part in text) / GB) == published


def test_qwen2_vl_2b_in_16_bit() -> None:
    """4.11 of Unsloth's table of dynamic 4-bit models: GiB of all weights, tower included."""
    assert stored_nbytes(parts(QWEN2_VL_2B), text_config(QWEN2_VL_2B))[SIXTEEN] / GIB == pytest.approx(4.11, abs=0.005)
