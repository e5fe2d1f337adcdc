"""A sound model of a few bytes, and ways to break it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bitwright.checkpoint.headers import INDEX_NAME

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|turn|>\\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 16,
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
    "layer_types": ["full_attention", "sliding_attention"],
    "sliding_window": 64,
    "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}
ADDED = ["<pad>", "<s>", "</s>", "<|turn|>"]
TOKENIZER: dict[str, Any] = {
    "model": {"type": "BPE", "vocab": {"a": 4, "b": 5}},
    "added_tokens": [{"id": i, "content": token, "special": True} for i, token in enumerate(ADDED)],
    "post_processor": None,
}
TOKENIZER_CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": TEMPLATE}
GENERATION = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0}
WEIGHTS = {
    "model.embed_tokens.weight": torch.zeros(16, 8, dtype=torch.bfloat16),
    **{
        f"model.layers.0.self_attn.{role}_proj.weight": torch.zeros(rows, 8, dtype=torch.bfloat16)
        for role, rows in (("q", 8), ("k", 4), ("v", 4))
    },
}
FILES = {
    "config.json": CONFIG,
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": TOKENIZER_CONFIG,
    "generation_config.json": GENERATION,
}
Break = Callable[[Path], None]
ATTENTION = "model.layers.0.self_attn"


def sound(directory: Path) -> Path:
    for name, value in FILES.items():
        (directory / name).write_text(json.dumps(value))
    shards = {"model-00001-of-00002.safetensors": list(WEIGHTS)[:1], "model-00002-of-00002.safetensors": list(WEIGHTS)[1:]}
    for shard, names in shards.items():
        save_file({name: WEIGHTS[name] for name in names}, directory / shard)
    total = sum(tensor.nbytes for tensor in WEIGHTS.values())
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    (directory / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return directory


def change(name: str, **values: Any) -> Break:
    """Settings of a JSON file; None takes one out."""

    def apply(directory: Path) -> None:
        data = json.loads((directory / name).read_text()) | values
        (directory / name).write_text(json.dumps({key: value for key, value in data.items() if value is not None}))

    return apply


def weights(tensors: dict[str, torch.Tensor]) -> Break:
    """One file in place of the shards."""

    def apply(directory: Path) -> None:
        for path in directory.glob("model*"):
            path.unlink()
        save_file(tensors, directory / "model.safetensors")

    return apply


def template(text: str) -> Break:
    return change("tokenizer_config.json", chat_template=text)


def both(*breaks: Break) -> Break:
    def apply(directory: Path) -> None:
        for one in breaks:
            one(directory)

    return apply


def packed(*more: str, **config: Any) -> Break:
    """4-bit weights with their statistics, and what config.json says about them."""
    byte = torch.uint8
    extra = {}
    for name in ("model.layers.0.mlp.up_proj.weight", *more):
        extra |= {
            name: torch.zeros(32, 1, dtype=byte),
            f"{name}.absmax": torch.zeros(1),
            f"{name}.quant_map": torch.zeros(16),
            f"{name}.quant_state.bitsandbytes__nf4": torch.zeros(8, dtype=byte),
        }
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": ["self_attn"]} | config
    return both(weights(WEIGHTS | extra), change("config.json", quantization_config=said))


def without(end: str) -> Break:
    def apply(directory: Path) -> None:
        from safetensors.torch import load_file

        tensors = load_file(directory / "model.safetensors")
        save_file({name: tensor for name, tensor in tensors.items() if not name.endswith(end)}, directory / "model.safetensors")

    return apply


def duplicated_tensor(directory: Path) -> None:
    name = next(iter(WEIGHTS))
    save_file(WEIGHTS, directory / "model-00002-of-00002.safetensors")
    assert name in json.loads((directory / INDEX_NAME).read_text())["weight_map"]


def overlapping(directory: Path) -> None:
    """The second tensor of a shard begins within the first."""
    path = directory / "model-00002-of-00002.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    (first, second), size = list(WEIGHTS)[1:3], raw[8 + length :]
    start = header[first]["data_offsets"][0] + 2
    held = header[second]["data_offsets"]
    header[second]["data_offsets"] = [start, start + held[1] - held[0]]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + size)


def mistral(pattern: str) -> Break:
    """A tokenizer of Mistral's that splits by ``pattern``."""
    step = {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}}, {"type": "ByteLevel"}]}
    vocabulary = {"a": 4, "b": 5, "[INST]": 6, "[AVAILABLE_TOOLS]": 7}
    return change("tokenizer.json", model={"type": "BPE", "vocab": vocabulary}, pre_tokenizer=step)


PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
TURN = "<|turn|>{% if add_generation_prompt %}<|assistant|>{% endif %}"
YARN = CONFIG["rope_parameters"]
NOTHING_ADDED = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]}
BOS_FIRST = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}
