"""What an estimate says against what a fresh process holds: weights as loaded, caches, one forward pass, training steps.

python -m benchmarks.estimate [smollm2] [gemma] [--workdir DIR] [--train]

Tensors are counted by their storages, parameters and buffers and the statistics of 4-bit blocks; resident memory is what the
process grew by, its libraries loaded and warmed up before.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from benchmarks.llama_cpp_files import LLAMA_CPP, llama_cpp_codes, plan_of
from benchmarks.models import reference
from bitwright.checkpoint.open import open_checkpoint
from bitwright.containers.gguf.container import GGUF, recipe_of
from bitwright.estimate.cache import cache_nbytes
from bitwright.estimate.estimate import estimate
from bitwright.estimate.source import read_source
from bitwright.estimate.storage import PLAIN_4_BIT, SIXTEEN
from bitwright.estimate.training import CHECKPOINTED, KEPT, PURE_16, training
from bitwright.models.open import open_model
from bitwright.models.settings import text_config
from bitwright.runtimes import llama_cpp

CONTEXT, TRAINED_TOKENS, RECIPE = 1024, 256, "Q4_K_M"
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
WAYS: dict[str, dict[str, Any]] = {
    SIXTEEN: {},
    PLAIN_4_BIT: NF4,
    "NF4, double quantized": NF4 | {"bnb_4bit_use_double_quant": True},
    "INT8 (bitsandbytes)": {"load_in_8bit": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma"])
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()) / "bitwright-estimate")
    parser.add_argument("--train", action="store_true", help="training steps, too, minutes each on a processor")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # what a fresh process is asked: kind and directory
    options = parser.parse_args()
    if options.measure:
        kind, path = options.measure
        print(json.dumps(MEASURES.get(kind, loaded)(kind, Path(path))))
        return
    for name in options.models:
        table = Table(title=name, box=None, pad_edge=False)
        for title in ("", "estimate MB", "measured MB", "ratio"):
            table.add_column(title, justify="right" if title else "left")
        for what, expected, found in figures(reference(name), options.workdir / name, options.train):
            table.add_row(what, f"{expected / 1e6:.1f}", f"{found / 1e6:.1f}", f"{expected / found:.3f}")
        Console().print(table)


def figures(directory: Path, work: Path, trains: bool) -> Iterator[tuple[str, float, float]]:
    """What, the estimate in bytes, and the measurement."""
    work.mkdir(parents=True, exist_ok=True)
    source = read_source(str(directory))
    lines = {line.format: line for line in estimate(source, context=CONTEXT).lines}
    held = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    yield "disk, as it is (file with its header)", lines["as it is: BF16"].disk_nbytes, held
    for way in WAYS:
        found = ask(way, directory)
        yield f"{way}: tensors", lines[way].disk_nbytes, found["tensors"]
        if way == SIXTEEN:  # the others convert on the processor, and the allocator keeps what that took
            yield f"{way}: resident", lines[way].disk_nbytes, found["resident"]
            yield f"cache of {CONTEXT} tokens", lines[way].cache_nbytes, found["cache"]
            yield f"one pass over {CONTEXT} tokens: resident, at most", lines[way].memory_nbytes, found["peak"]
    gguf = gguf_file(directory, work / f"{RECIPE}.gguf")
    found = ask("gguf", gguf)
    yield f"{RECIPE}: tensors, as llama.cpp counts", lines[RECIPE].disk_nbytes, found["tensors"]
    yield f"{RECIPE}: the file's headers against itself", read_stored(gguf), found["tensors"]
    yield f"{RECIPE}: cache of {CONTEXT} tokens", cache_nbytes(source.config, CONTEXT), found["cache"]
    text, stored = text_config(source.config), {line.format: line.disk_nbytes for line in lines.values()}
    for activations in (CHECKPOINTED, KEPT) if trains else ():
        ways = training(
            source.parts,
            text,
            stored,
            n_tokens=TRAINED_TOKENS,
            batch=1,
            rank=16,
            optimizer=PURE_16,
            activations=activations,
            memory=None,
        )
        full = next(line for line in ways if line.method == "full")
        found = ask(f"train {activations}", directory)
        yield f"AdamW in 16 bit, activations {activations}: resident, at most", full.memory_nbytes, found["peak"]


def read_stored(path: Path) -> int:
    stored = read_source(str(path)).stored
    assert stored is not None
    return stored.nbytes


def gguf_file(directory: Path, out: Path) -> Path:
    """The model as llama.cpp's recipe has it, by its own encoders."""
    if not out.exists():
        source = open_model(open_checkpoint(directory), vocabulary=GGUF.vocabulary).source
        plan = plan_of(source, recipe_of(source.spec, RECIPE), LLAMA_CPP)
        GGUF.write({out: plan}, source, llama_cpp_codes(source, {}))
    return out


def ask(kind: str, path: Path) -> dict[str, int]:
    """The answer of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.estimate", "--measure", kind, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return answer


def resident() -> int:
    """Bytes of memory that the process holds, what its allocator keeps for later given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def highest() -> int:
    """Most memory that was resident since the process began, or since ``forget_highest``."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def forget_highest() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


@torch.enable_grad()
def warm_up(directory: Path, settings: BitsAndBytesConfig | None = None) -> None:
    """Libraries, threads and their buffers: a model of the same class, 1 layer and 64 wide, goes the same way before."""
    config = AutoConfig.from_pretrained(directory)
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64, "num_attention_heads": 2}
    config.update(small | {"num_key_value_heads": 1, "head_dim": 32, "layer_types": ["full_attention"], "pad_token_id": 0})
    with tempfile.TemporaryDirectory() as scratch:
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(scratch)
        model = AutoModelForCausalLM.from_pretrained(scratch, dtype=torch.bfloat16, quantization_config=settings)
    model(torch.ones(1, 8, dtype=torch.long), use_cache=True).logits.sum().backward()


@torch.no_grad()
def loaded(way: str, directory: Path) -> dict[str, int]:
    settings = BitsAndBytesConfig(**WAYS[way]) if WAYS[way] else None
    warm_up(directory, settings)
    before = resident()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, quantization_config=settings).eval()
    for parameter in model.parameters():
        parameter.view(-1)[:: 4096 // parameter.element_size()].sum()  # pages of a mapped file, too
    found = {"tensors": sum(storages(model).values()), "resident": resident() - before}
    if way == SIXTEEN:
        forget_highest()
        cache = None
        for ids in torch.ones(1, CONTEXT, dtype=torch.long).split(512, 1):
            cache = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
        assert cache is not None
        found["peak"] = highest() - before
        found["cache"] = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return found


def storages(model: torch.nn.Module) -> dict[int, int]:
    """Address -> bytes of everything that the model holds."""
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        scales = getattr(parameter, "SCB", None)
        nested = getattr(state, "state2", None)
        tensors += [
            t
            for t in (scales, *(getattr(s, n, None) for s in (state, nested) for n in ("absmax", "code")))
            if isinstance(t, torch.Tensor)
        ]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def in_llama_cpp(kind: str, path: Path) -> dict[str, int]:
    """Sizes that llama.cpp says of itself while it loads."""
    said: list[str] = []
    note = llama_cpp._LOG(lambda level, text, data: said.append(text.decode(errors="replace")))
    llama_cpp.library().llama_log_set(note, None)
    model = llama_cpp.LlamaCpp(path, CONTEXT)
    words = "".join(said)
    model.close()
    cache = sum(map(float, re.findall(r"KV buffer size\s*=\s*([\d.]+) MiB", words)))
    buffers = dict(re.findall(r"(\S+) model buffer size\s*=\s*([\d.]+) MiB", words))
    return {"tensors": int(float(buffers["CPU_Mapped"]) * 2**20), "cache": int(cache * 2**20)}


def trained(kind: str, directory: Path) -> dict[str, int]:
    """Two steps of AdamW on one text."""
    warm_up(directory)
    before = resident()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).train()
    if kind.endswith(CHECKPOINTED):
        model.gradient_checkpointing_enable()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-6, foreach=False)
    ids = torch.ones(1, TRAINED_TOKENS, dtype=torch.long)
    forget_highest()
    for _ in range(2):
        model(ids, labels=ids, use_cache=False).loss.backward()
        adamw.step()
        adamw.zero_grad(set_to_none=False)
    return {"peak": highest() - before}


MEASURES: dict[str, Callable[[str, Path], dict[str, int]]] = {
    "gguf": in_llama_cpp,
    f"train {CHECKPOINTED}": trained,
    f"train {KEPT}": trained,
}

if __name__ == "__main__":
    main()
