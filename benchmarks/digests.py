"""python -m benchmarks.digests OUT [demo] [tiny] — SHA-256 of what a run writes, so that a change that changes nothing shows.

Run it before a change and after it on one machine, then with ``--baseline`` naming the file of the first run. ``demo``: the
demo model at its default budget, at stock bytes, and as a GGUF file as large as Q4_K_M. ``tiny``: a random model of each
architecture of the tests. The numbers of ``sensitivity.json`` are hashed weight by weight, so that new fields do not count.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import shutil
from pathlib import Path

import torch
import transformers

import bitwright
from bitwright import Settings
from bitwright.checkpoint.open import local_directory

NUMBERS = (
    "format",
    "rounding",
    "nbytes",
    "damage_nats",
    "damage_stderr",
    "fisher_nats",
    "check_nats",
    "check_stderr",
    "weight_error",
    "output_error",
)
COMMON = {
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 24},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "phi3": {"pad_token_id": 0},
    "gemma3_text": {"head_dim": 32, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {
        "vocab_size": 49152,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 256,
        "n_inner": 160,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("what", nargs="*", default=["tiny", "demo"])
    parser.add_argument("--baseline", type=Path, help="digests.json of an earlier run, to compare with")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, str] = {}
    if "tiny" in options.what:
        for name, extra in ARCHITECTURES.items():
            source = tiny(options.out / "models" / name, name, extra)
            for sequences, length in ((24, 48), (128, 128)):
                settings = {
                    "sequences": sequences,
                    "length": length,
                    "dtype": "float32",
                    "compare": False,
                    "held_out_length": 128,
                }
                run(options.out, f"{name}-{sequences}x{length}", source, "6bpw", settings, found)
    if "demo" in options.what:
        run(options.out, "demo", "demo", "+10%", {}, found)
        run(options.out, "demo-stock", "demo", "+0%", {}, found, work="demo")
        run(options.out, "demo-q4_k_m.gguf", "demo", "like Q4_K_M", {"container": "gguf"}, found)
    (options.out / "digests.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.baseline:
        old = json.loads(options.baseline.read_text(encoding="utf-8"))
        for key, value in found.items():
            print("same     " if old.get(key) == value else "DIFFERENT" if key in old else "new      ", key)


def tiny(directory: Path, architecture: str, options: dict[str, object]) -> Path:
    """A random model of two blocks with the demo model's tokenizer."""
    if not directory.exists():
        config = transformers.AutoConfig.for_model(architecture, **(options if architecture == "gpt2" else COMMON | options))
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():  # larger than the default start, so that quantization has something to damage
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(4.0)
        model.bfloat16().save_pretrained(directory)
        for path in local_directory("demo").glob("token*"):
            (directory / path.name).write_bytes(path.read_bytes())
    return directory


def run(
    root: Path, name: str, source: Path | str, budget: str, options: dict[str, object], found: dict[str, str], work: str = ""
) -> None:
    """Quantize, and note the digests of the weights and of the table."""
    if "fused_groups" in inspect.signature(Settings).parameters:
        options = options | {"fused_groups": False}  # the choice as it is without the constraint
    out, work_root = root / name, root / f"{work or name}.work"
    if out.exists():
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    report = bitwright.quantize(source, out, budget, settings=Settings(**options), workdir=work_root)
    for path in sorted(out.glob("*.safetensors")) if out.is_dir() else [out]:
        found[f"{name} {path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    table = json.loads((work_root / "sensitivity.json").read_text(encoding="utf-8"))
    numbers = {w["name"]: [[row[field] for field in NUMBERS] for row in w["rows"]] for w in table["weights"]}
    found[f"{name} sensitivity"] = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()
    found[f"{name} plan"] = hashlib.sha256(
        json.dumps([[c.weight, c.format, c.nbytes, c.damage_nats] for c in report.plan.choices]).encode()
    ).hexdigest()
    print(name, found[f"{name} sensitivity"][:12], f"KL {report.result.divergence.kl:.6f}", flush=True)


if __name__ == "__main__":
    main()
