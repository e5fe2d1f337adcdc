"""The rows of the table: which peer, in which environment, asked for what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OWN = "bitwright"  # the environment that runs this


@dataclass(frozen=True)
class Row:
    """One way to quantize."""

    label: str
    adapter: str  # a module of benchmarks.peers.adapters
    environment: str  # a file of benchmarks/peers/requirements, or OWN
    options: dict[str, Any] = field(default_factory=dict)
    ours: str = "bitsandbytes"  # the container of ours that it is compared with
    pins: tuple[str, ...] = ()  # what ours has to leave as it is, too
    models: tuple[str, ...] = ("smollm2", "gemma", "qwen")


QUICK = "in bfloat16 where that is quick"  # for an option: true there, as we compute, and else false
BLOCKS = range(10, 14)  # of the 24 of qwen: learned rounding takes nine minutes for each on two cores
OUTSIDE = tuple(f"model.layers.{i}.*=16bit" for i in range(24) if i not in BLOCKS)


ROWS = (
    Row("bitsandbytes NF4", "bitsandbytes", "common", {"quant_type": "nf4", "double_quant": False}),
    Row("bitsandbytes NF4, double quantized", "bitsandbytes", "common", {"quant_type": "nf4", "double_quant": True}),
    Row("bitsandbytes FP4", "bitsandbytes", "common", {"quant_type": "fp4", "double_quant": False}),
    Row("HQQ g64", "hqq", "common", {"bits": 4, "group_size": 64}),
    Row("optimum-quanto qint4", "quanto", "common"),
    Row("torchao int4 HQQ g64", "torchao", "common", {"group_size": 64}),
    Row("mlx-lm 4 bits g64", "mlx", "mlx", {"method": "plain"}),
    Row("mlx-lm GPTQ g64, 16 sequences", "mlx", "mlx", {"method": "gptq", "sequences": 16}),
    Row("mlx-lm dynamic_quant 4.75 bits, 16 sequences", "mlx", "mlx", {"method": "dynamic", "bits": 4.75, "sequences": 16}),
    Row("GPTQModel g64", "gptqmodel", "gptqmodel", {"group_size": 64}),
    Row("llm-compressor GPTQ g64", "llmcompressor", "llmcompressor", {"method": "gptq", "group_size": 64}),
    Row("llm-compressor GPTQ g32", "llmcompressor", "llmcompressor", {"method": "gptq", "group_size": 32}),
    Row(
        "llm-compressor GPTQ g64, same container, 48 sequences",
        "llmcompressor",
        "llmcompressor",
        {"method": "gptq", "group_size": 64},
        ours="compressed-tensors",
    ),
    Row(
        "llm-compressor GPTQ g128, same container, 48 sequences",
        "llmcompressor",
        "llmcompressor",
        {"method": "gptq", "group_size": 128},
        ours="compressed-tensors",
    ),
    Row("llm-compressor AWQ g64", "llmcompressor", "llmcompressor", {"method": "awq", "group_size": 64}),
    Row("ModelOpt auto_quantize, int4 g64 and int8", "modelopt", "modelopt", {"bits": 4.6, "group_size": 64}),
    Row("AutoRound RTN g64", "autoround", "common", {"iters": 0, "group_size": 64}),
    Row("AutoRound AutoScheme 4.6 bits g64, RTN", "autoround", "common", {"iters": 0, "group_size": 64, "avg_bits": 4.6}),
    Row(
        "AutoRound AutoScheme 4.6 bits g64, 200 iterations",
        "autoround",
        "common",
        {"iters": 200, "group_size": 64, "avg_bits": 4.6},
    ),
    Row("AutoRound g64, 200 iterations", "autoround", "common", {"iters": 200, "group_size": 64}, models=("smollm2", "gemma")),
    Row(
        "AutoRound g64, 200 iterations, four blocks of 24",
        "autoround",
        "common",
        {"iters": 200, "group_size": 64, "amp": QUICK, "to_quant_block_names": ",".join(f"model.layers.{i}" for i in BLOCKS)},
        pins=OUTSIDE,
        models=("qwen",),
    ),
    Row("llama.cpp Q4_K_M, imatrix", "llamacpp", OWN, {"recipe": "Q4_K_M"}, ours="gguf"),
    Row("llama.cpp Q4_0, imatrix", "llamacpp", OWN, {"recipe": "Q4_0"}, ours="gguf"),
    Row("llama.cpp Q3_K_M, imatrix", "llamacpp", OWN, {"recipe": "Q3_K_M"}, ours="gguf"),
)
