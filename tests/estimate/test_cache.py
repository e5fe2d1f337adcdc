"""The cache's formula against the caches that transformers fills, and its inverse."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel

from bitwright.doctor.model import Model
from bitwright.estimate.cache import cache_nbytes, longest_context
from bitwright.estimate.families import FAMILIES
from bitwright.models.settings import BOTH, FULL, layer_kinds, text_config
from tests.conftest import Build
from tests.estimate.test_families import CASES, TEXT
from tests.estimate.test_families import given as settings


def kept(model: PreTrainedModel, n_tokens: int) -> int:
    """Bytes of the keys, values and states that ``model`` holds after ``n_tokens``."""
    with torch.no_grad():
        layers = model(torch.ones(1, n_tokens, dtype=torch.long), use_cache=True).past_key_values.layers
    states = [s for layer in layers for name in ("conv_states", "recurrent_states") for s in getattr(layer, name, {}).values()]
    keys = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return sum(tensor.nbytes for tensor in states + keys if tensor is not None)


def of_directory(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()


@pytest.mark.parametrize("shared", [0, 2])
def test_layers_that_see_all_tokens_have_heads_of_their_own(shared: int) -> None:
    """Gemma 4, whose last layers may read what earlier ones keep; published files name such heads, transformers 5.24 layers."""
    kinds = ["sliding_attention", "full_attention", *["sliding_attention"] * 3, "full_attention"]
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 6, "vocab_size": 64, "sliding_window": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "global_head_dim": 32}
    more = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "num_kv_shared_layers": shared}
    fewer = {} if shared else {"num_global_key_value_heads": 1, "attention_k_eq_v": True}
    config = transformers.Gemma4TextConfig(**sizes, **heads, **more, **fewer, layer_types=kinds)
    model = AutoModelForCausalLM.from_config(config).bfloat16().eval()
    published = {"model_type": "gemma4_text", "layer_types": kinds, **sizes, **heads, **more, **fewer}
    for stated in (config.to_dict(), published):
        assert cache_nbytes(stated, 40) == kept(model, 40)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "phi3"])
@pytest.mark.parametrize("n_tokens", [1, 40])
def test_full_attention_keeps_every_token(build: Build, architecture: str, n_tokens: int) -> None:
    directory = build(architecture)
    assert cache_nbytes(Model(directory).config, n_tokens) == kept(of_directory(directory), n_tokens)


def test_a_sliding_layer_keeps_its_window(build: Build) -> None:
    config = Model(build("gemma3_text")).config  # one sliding layer of 24, one full
    per_token = cache_nbytes(config, 1) // 2
    assert cache_nbytes(config, 24) == 48 * per_token
    assert cache_nbytes(config, 100) == (24 + 100) * per_token


def runs(kind: str, options: dict[str, Any]) -> bool:
    """Whether the class of a recurrent family answers: it wants one layer that attends, or none to be able to."""
    kinds = layer_kinds(text_config({"model_type": kind, **settings(TEXT | options)}))
    return FAMILIES[kind].recurrent is not None and (kind.startswith("mamba") or FULL in kinds or BOTH in kinds)


RECURRENT = [case for case in CASES if runs(*case)]


@pytest.mark.parametrize(("kind", "options"), RECURRENT)
@pytest.mark.parametrize("n_tokens", [10, 40])
def test_a_recurrent_layer_keeps_a_state(kind: str, options: dict[str, Any], n_tokens: int) -> None:
    config = transformers.AutoConfig.for_model(kind, **settings(TEXT | options))
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    assert cache_nbytes(config.to_dict(), n_tokens) == kept(model, n_tokens)


def test_the_state_does_not_grow_and_is_not_quantized() -> None:
    config = {"model_type": "mamba2"}
    assert cache_nbytes(config, 1) == cache_nbytes(config, 10**6) == cache_nbytes(config, 1, bits=4)
    assert cache_nbytes(config, 1, batch=3) == 3 * cache_nbytes(config, 1)
    assert longest_context(config, cache_nbytes(config, 1) - 1) == 0


def test_layers_that_attend_to_a_picture_keep_no_text() -> None:
    config = {"model_type": "mllama"}  # 40 layers, 8 of which do
    assert cache_nbytes(config, 10) == 10 * 32 * 2 * 8 * 128 * 2


def grouped(kind: str, layers: int, hidden: int, heads: int, shared: int) -> dict[str, Any]:
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
    }


@pytest.mark.parametrize(
    ("config", "nbytes"),
    [
        ({"model_type": "deepseek_v3", "num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 70_272),
        (grouped("qwen2", 80, 8192, 64, 8), 327_680),
        (grouped("llama", 126, 16384, 128, 8), 516_096),
    ],
    ids=["DeepSeek-V3", "Qwen2.5-72B", "Llama-3.1-405B"],
)
def test_published_bytes_a_token(config: dict[str, Any], nbytes: int) -> None:
    """Table 1 of "Insights into DeepSeek-V3", arXiv 2505.09343."""
    assert cache_nbytes(config, 1) == nbytes


CONFIGS: list[dict[str, Any]] = [
    {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    {"model_type": "gemma2", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "sliding_window": 16},
    {
        "model_type": "qwen2",
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "sliding_window": 16,
        "use_sliding_window": True,
        "max_window_layers": 3,
    },
]


@given(st.sampled_from(CONFIGS), st.integers(0, 10**8), st.integers(1, 4), st.sampled_from([16, 8, 4.5]))
def test_the_longest_context_fits_and_one_more_token_does_not(
    config: dict[str, Any], room: int, batch: int, bits: float
) -> None:
    config = config | {"max_position_embeddings": 4096}
    longest = longest_context(config, room, batch, bits)
    assert cache_nbytes(config, longest, batch, bits) <= room
    assert longest == 4096 or cache_nbytes(config, longest + 1, batch, bits) > room
