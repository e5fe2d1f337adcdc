"""python -m benchmarks.forecasts — time, memory and disk of ``quantize`` by model size, as a table for docs/cost.md.

Each line is what ``--dry-run`` says on this machine for a llama of those shapes; the checkpoint is headers with nothing behind
them, so that 70 billion parameters fit on any disk. ``--run`` instead runs the whole job on random weights of small sizes, and
prints forecast and measurement beside each other.
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import bitwright
import bitwright.settings
from benchmarks.models import random_llama, reference
from bitwright import Settings
from bitwright.host.schedule import in_words

SHAPES = {  # hidden, inner, blocks, heads of keys and values
    "0.1": (576, 1536, 30, 3),
    "0.5": (896, 4864, 24, 2),
    "1.5": (1536, 8960, 28, 2),
    "3": (3072, 8192, 28, 8),
    "8": (4096, 14336, 32, 8),
    "14": (5120, 17408, 40, 8),
    "32": (5120, 25600, 64, 8),
    "70": (8192, 28672, 80, 8),
}
SMALLEST = ((384, 1024, 7), (512, 1408, 16), (768, 2048, 18))
HEAD = 128  # width of an attention head, where the hidden width divides by it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="also whole runs of small sizes, to hold the forecast against")
    parser.add_argument("--only", default="", help="sizes in billions, separated by commas")
    options = parser.parse_args()
    if options.run:
        for shape in SMALLEST:
            held_against(shape)
        return
    names = options.only.split(",") if options.only else list(SHAPES)
    print("| billion parameters | hidden, inner, blocks | time | peak memory | disk while it runs | result |")
    print("|---|---|---|---|---|---|")
    for name in names:
        hidden, inner, blocks, heads = SHAPES[name]
        with tempfile.TemporaryDirectory() as folder:
            hollow(Path(folder) / "model", hidden, inner, blocks, heads)
            found = bitwright.forecast(Path(folder) / "model", Path(folder) / "out")
        sizes = " | ".join(f"{nbytes / 1e9:,.1f} GB" for nbytes in (found.peak_nbytes, found.disk_nbytes, found.nbytes))
        print(f"| {name} | {hidden:,}, {inner:,}, {blocks} | {in_words(found.total)} | {sizes} |", flush=True)


def hollow(directory: Path, hidden: int, inner: int, blocks: int, heads: int, vocabulary: int = 49152) -> None:
    """A bfloat16 llama of which only config and headers exist; where its weights would be the file has a hole."""
    width = HEAD if hidden % HEAD == 0 else 64
    config = AutoConfig.for_model(
        "llama",
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // width,
        num_key_value_heads=heads,
        vocab_size=vocabulary,
        tie_word_embeddings=hidden < 2048,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    header, at = {}, 0
    for name, parameter in model.named_parameters():
        end = at + 2 * parameter.numel()
        header[name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [at, end]}
        at = end
    words = json.dumps(header).encode()
    directory.mkdir()
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(words)) + words)
        file.truncate(8 + len(words) + at)
    data = config.to_dict() | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (directory / "config.json").write_text(json.dumps(data, default=str))
    for path in reference("smollm2").glob("token*"):
        (directory / path.name).write_bytes(path.read_bytes())


def held_against(shape: tuple[int, int, int]) -> None:
    """One line: what was said beforehand, and what it was."""
    hidden, inner, blocks = shape
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "model", Path(folder) / "out"
        parameters = random_llama(source, hidden, inner, blocks)
        settings = Settings(effort=bitwright.settings.Effort.QUICK)
        said = bitwright.forecast(source, out, settings=settings)
        start = time.perf_counter()
        report = bitwright.quantize(source, out, settings=settings)
        seconds = time.perf_counter() - start
        peak = max(stage.peak_nbytes for stage in report.stages.values())
    line = {
        "million_parameters": round(parameters / 1e6),
        "forecast_seconds": round(said.total, 1),
        "seconds": round(seconds, 1),
        "seconds_ratio": round(seconds / said.total, 2),
        "forecast_peak_gb": round(said.peak_nbytes / 1e9, 2),
        "peak_gb": round(peak / 1e9, 2),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
