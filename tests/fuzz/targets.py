"""What is attacked: for each kind of file a sound one, how it is mutated, and the verbs that read it."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.allocate.allocate import allocate, stock
from bitwright.allocate.edited import edited
from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.checkpoint.headers import read_headers
from bitwright.data.image_rows import read_pictures
from bitwright.data.pictures import drawn
from bitwright.data.rows import read_domains
from bitwright.data.tokenizer import tokenizer_of
from bitwright.doctor.doctor import examine
from bitwright.estimate.estimate import estimate
from bitwright.estimate.source import read_source
from bitwright.models.open import open_model
from bitwright.plan import SIXTEEN, Plan, Rounding
from bitwright.sensitivity import Row, Sensitivity, WeightRows
from tests.fuzz.mutate import of_bytes, of_json

COMMON = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}
CONFIGS: tuple[dict[str, Any], ...] = (
    {"model_type": "llama", "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, **COMMON},
    {"model_type": "qwen2", "tie_word_embeddings": True, "use_sliding_window": True, "max_window_layers": 1, **COMMON},
    {"model_type": "gemma3_text", "head_dim": 32, "sliding_window": 24, "layer_types": ["sliding_attention"] * 2, **COMMON},
    {"model_type": "mistral", "sliding_window": 24, **COMMON},
    {"model_type": "phi3", "pad_token_id": 0, "rope_scaling": None, **COMMON},
    {"model_type": "qwen2_vl", "text_config": {"model_type": "qwen2_vl_text", **COMMON}, "vision_config": {"depth": 2}},
    {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, **COMMON},
)
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "lstrip": False},
    "chat_template": "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}",
    "added_tokens_decoder": {"0": {"content": "<s>", "special": True}},
}
GENERATION = {"bos_token_id": 1, "eos_token_id": [2, 3], "temperature": 0.7, "top_p": 0.9}


class Plain:
    """As much of a tokenizer as reading rows asks for."""

    chat_template = None


@dataclass(frozen=True)
class Target:
    """One kind of input: mutants of it, and what reads them from a folder."""

    name: str
    make: Callable[[random.Random], dict[str, bytes]]  # file -> content
    read: tuple[Callable[[Path], object], ...]


def table() -> Sensitivity:
    """A small table of two weights."""
    rows = tuple(
        Row("nf4-b64", kind, 100, nats, 0.1, nats, nats, 0.1, 0.1, 0.1, (nats,))
        for kind, nats in ((Rounding.NEAREST, 0.5), (Rounding.CALIBRATED, 0.2))
    )
    sixteen = Row(SIXTEEN, Rounding.NONE, 400, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    weights = tuple(
        WeightRows(f"model.layers.{i}.mlp.up_proj.weight", i, "up_proj", 10, 20, (*rows, sixteen), "nf4-b64", 0.1, ())
        for i in range(2)
    )
    return Sensitivity("x", "bitsandbytes", "stock NF4", 1000, weights, {"kinds": ["text"]})


TABLE = table()
PLAN = allocate(TABLE, "+10%")


def safetensors_bytes(header: dict[str, Any], size: int) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(size)


HEADER = {
    "__metadata__": {"format": "pt"},
    "model.embed_tokens.weight": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]},
    "model.layers.0.mlp.up_proj.weight": {"dtype": "F32", "shape": [2, 8], "data_offsets": [64, 128]},
}
INDEX = {"metadata": {"total_size": 128}, "weight_map": dict.fromkeys(list(HEADER)[1:], "model-00001-of-00001.safetensors")}


def _config(chance: random.Random) -> dict[str, bytes]:
    return {"config.json": of_json(chance.choice(CONFIGS), chance)}


def _model(chance: random.Random) -> dict[str, bytes]:
    """A directory whose class transformers builds, and whose tokenizer it reads."""
    text = of_json(TOKENIZER, chance) if chance.random() < 0.5 else json.dumps(TOKENIZER).encode()
    return {**_config(chance), "model.safetensors": safetensors_bytes(HEADER, 128), "tokenizer_config.json": text}


def _texts(chance: random.Random) -> dict[str, bytes]:
    which = chance.randrange(3)
    return {
        "config.json": json.dumps(CONFIGS[0]).encode(),
        "tokenizer_config.json": of_json(TOKENIZER, chance) if which == 0 else json.dumps(TOKENIZER).encode(),
        "generation_config.json": of_json(GENERATION, chance) if which == 1 else json.dumps(GENERATION).encode(),
        "special_tokens_map.json": of_json({"eos_token": "</s>", "pad_token": {"content": "<pad>"}}, chance),
    }


def _weights(chance: random.Random) -> dict[str, bytes]:
    raw = of_json(HEADER, chance)
    length = len(raw) if chance.random() < 0.9 else chance.choice((0, 1, 2**40, 2**63, len(raw) + 200))
    whole = struct.pack("<Q", length) + raw + bytes(128)
    if chance.random() < 0.3:
        whole = of_bytes(safetensors_bytes(HEADER, 128), chance)
    if chance.random() < 0.5:
        index = of_json(INDEX, chance) if chance.random() < 0.7 else json.dumps(INDEX).encode()
        return {"model-00001-of-00001.safetensors": whole, "model.safetensors.index.json": index}
    return {"model.safetensors": whole, "config.json": json.dumps(CONFIGS[0]).encode()}


def _rows(chance: random.Random) -> dict[str, bytes]:
    rows = [{"text": "one two"}, {"text": "three", "domain": "a"}, {"messages": [{"role": "user", "content": "hi"}]}]
    lines = [of_json(row, chance) if chance.random() < 0.5 else json.dumps(row).encode() for row in rows]
    data = b"\n".join(lines)
    return {"rows.jsonl": of_bytes(data, chance) if chance.random() < 0.2 else data, "rows.txt": of_bytes(data, chance)}


def _images() -> Callable[[random.Random], dict[str, bytes]]:
    """Rows and a folder with a picture in one of the usual formats."""
    picture = drawn(1, 0)[0].image.resize((48, 40))
    sound = {}
    for kind in ("png", "jpeg", "gif", "webp", "tiff", "bmp"):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        sound[kind] = buffer.getvalue()
    row = {"image": "a.png", "question": "What?", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}

    def make(chance: random.Random) -> dict[str, bytes]:
        image = of_bytes(sound[chance.choice(list(sound))], chance)
        line = of_json(row, chance) if chance.random() < 0.5 else json.dumps(row).encode()
        return {"a.png": image, "a.txt": b"words", "rows.jsonl": line}

    return make


def gguf_bytes() -> bytes:
    """A small file of a language model, as the gguf package writes it."""
    import tempfile

    import gguf
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(1)
        writer.add_embedding_length(64)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_context_length(128)
        writer.add_feed_forward_length(96)
        writer.add_float32("llama.rope.freq_base", 10000.0)
        writer.add_token_list(["<s>", "</s>", *(f"t{i}" for i in range(14))])
        writer.add_token_types([3, 3, *[1] * 14])
        values = np.ones((16, 64), dtype=np.float32)
        writer.add_tensor("token_embd.weight", values)
        writer.add_tensor("output_norm.weight", values[0])
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_norm"):
            writer.add_tensor(f"blk.0.{part}.weight", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _gguf() -> Callable[[random.Random], dict[str, bytes]]:
    sound = gguf_bytes()
    head = sound.find(b"token_embd.weight") + 600  # keys, descriptions: what is worth changing

    def make(chance: random.Random) -> dict[str, bytes]:
        return {"m.gguf": of_bytes(sound[:head], chance) + sound[head:]}

    return make


def _estimated(path: Path) -> object:
    return estimate(read_source(str(path)), memory=8 * 10**9)


def targets() -> tuple[Target, ...]:
    return (
        Target("config", _config, (examine, _estimated, Checkpoint.of_directory)),
        Target("model", _model, (lambda d: open_model(Checkpoint.of_directory(d)), tokenizer_of)),
        Target("texts", _texts, (examine,)),
        Target("weights", _weights, (read_headers, examine, _estimated)),
        Target("gguf", _gguf(), (lambda d: examine(d / "m.gguf"), lambda d: _estimated(d / "m.gguf"))),
        Target(
            "sensitivity",
            lambda chance: {"s.json": of_json(json.loads(TABLE.to_json()), chance)},
            (lambda d: _allocated(Sensitivity.load(d / "s.json")),),
        ),
        Target(
            "plan",
            lambda chance: {"p.json": of_json(json.loads(PLAN.to_json()), chance)},
            (lambda d: edited(TABLE, Plan.load(d / "p.json"), d / "p.json"),),
        ),
        Target("images", _images(), (lambda d: read_pictures(str(d / "rows.jsonl")), lambda d: read_pictures(str(d)))),
        Target(
            "rows",
            _rows,
            (lambda d: read_domains(str(d / "rows.jsonl"), Plain()), lambda d: read_domains(str(d / "rows.txt"), Plain())),
        ),
    )


def _allocated(sensitivity: Sensitivity) -> object:
    stock(sensitivity)
    return allocate(sensitivity, "+10%", frontier=True)
