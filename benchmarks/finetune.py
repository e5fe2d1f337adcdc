"""python -m benchmarks.finetune — a QLoRA step beside TRL with PEFT and bitsandbytes, each in a process of its own.

SmolLM2-135M as stock NF4, 4 texts of 512 tokens, rank 16, all linears of the blocks, activations recomputed, AdamW. Prints
seconds of a step (median after the first) and the peak of memory above the loaded model, and their ratios. TRL is installed as
its documentation says; it runs with its defaults, in float32 and in bfloat16, and the faster one counts.

  python -m benchmarks.finetune --within-gb 4     the longest text that a step fits into so much memory above the model, by two
                                                  short ones and a trial at the length that they lead to expect
  python -m benchmarks.finetune --device cuda     on a GPU: memory is what torch has taken there; TRL in bfloat16, with Liger's
                                                  kernels, and with states kept in the processor's memory; ours the same ways
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from benchmarks.models import reference
from bitwright.data.documentation import documentation

TEXTS, LENGTH, RANK = 4, 512, 16
PARTS = {
    "cpu": ("ours", "trl-float32", "trl-bfloat16"),
    "cuda": ("ours", "ours-liger", "ours-offload", "trl-bfloat16", "trl-bfloat16-liger", "trl-bfloat16-offload"),
}
PROBED, STRIDE = (1024, 3072), 256  # lengths from which a longer one is foretold, and its rounding
STATUS = Path("/proc/self/status")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--part", default="", help="one part, in this process, such as ours or trl-bfloat16-liger")
    parser.add_argument("--device", choices=PARTS, default="cpu")
    parser.add_argument("--model", default="")
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--only", default="", help="parts, separated by commas")
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--within-gb", type=float, default=0.0)
    options = parser.parse_args()
    if options.part:
        run = ours if options.part.startswith("ours") else theirs
        print(json.dumps(run(options)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        stock(Path(folder) / "model")
        found: dict[str, dict[str, Any]] = {}
        parts = options.only.split(",") if options.only else PARTS[options.device]
        if options.within_gb:
            longest = {part: longest_of(part, options.device, f"{folder}/model", options.within_gb) for part in parts}
            own, peers = ([n for part, n in longest.items() if part.startswith("ours") is ours] for ours in (True, False))
            if peers and own:
                print(json.dumps({"longest_ratio": round(max(own) / max(peers), 2)}))
            return
        for part in parts:
            if line := run_of(part, options.device, f"{folder}/model", options.texts, options.length, options.steps):
                found[part] = line
                print(json.dumps({"part": part} | line), flush=True)
    own, peers = ([line for part, line in found.items() if part.startswith("ours") is ours] for ours in (True, False))
    if peers and own:
        first, best = (min(lines, key=lambda line: line["seconds"]) for lines in (own, peers))
        ratios = {f"{key}_ratio": round(first[key] / best[key], 3) for key in ("seconds", "peak_above_model_gb")}
        print(json.dumps(ratios | {"of": first["part"], "against": best["part"]}))


def run_of(part: str, device: str, model: str, n_texts: int, length: int, steps: int) -> dict[str, Any] | None:
    """One part in a process of its own; nothing where it fails."""
    command = [sys.executable, "-m", "benchmarks.finetune", "--part", part, "--model", model, "--device", device]
    command += ["--steps", str(steps), "--length", str(length), "--texts", str(n_texts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(json.dumps({"part": part, "length": length, "failed": done.stderr.strip().splitlines()[-1:]}), flush=True)
        return None
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def longest_of(part: str, device: str, model: str, most_gb: float) -> int:
    """Tokens of the longest text, to STRIDE, of which a trial stayed within ``most_gb``."""
    peaks: dict[int, float] = {}

    def tried(length: int, steps: int) -> float:
        line = run_of(part, device, model, 1, length, steps)
        peaks[length] = line["peak_above_model_gb"] if line else math.inf
        print(json.dumps({"part": part, "length": length, "peak_above_model_gb": peaks[length]}), flush=True)
        return peaks[length]

    for length in PROBED:
        tried(length, 2)
    fits, other = PROBED[1], PROBED[0]
    while True:  # along the line through the longest that fits and the last one beside it
        slope = (peaks[fits] - peaks[other]) / (fits - other)
        length = int((fits + (most_gb - peaks[fits]) / slope) // STRIDE * STRIDE)
        if length in peaks:
            return fits
        if tried(length, 1) <= most_gb:
            return length
        other = length


def stock(directory: Path) -> None:
    """The reference as stock NF4, with its tokenizer."""
    source = reference("smollm2")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    AutoModelForCausalLM.from_pretrained(source, quantization_config=config, dtype=torch.bfloat16).save_pretrained(directory)
    AutoTokenizer.from_pretrained(source).save_pretrained(directory)


def texts(tokenizer: Any, count: int, length: int) -> list[torch.Tensor]:
    """``count`` texts of ``length`` tokens."""
    whole = torch.cat([torch.tensor(tokenizer(text)["input_ids"]) for text in documentation(0, 2)])
    return [whole[i * length : (i + 1) * length] for i in range(count)]


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """Steps of our loop's own parts: pack, loss, backward, AdamW."""
    from bitwright.finetune.arena import Arena
    from bitwright.finetune.inputs import packed
    from bitwright.finetune.model import adapt, load
    from bitwright.finetune.tokens import Example
    from bitwright.finetune.train import LIGER, loss_of, recompute
    from bitwright.host.device import precision_of

    device = torch.device(options.device)
    work = precision_of("auto", device).work
    model = load(Path(options.model), device, work)
    adapt(model, ("*",), RANK, 16.0, False)
    recompute(model)
    if options.part.endswith("liger"):
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(model, LIGER)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    ids = texts(AutoTokenizer.from_pretrained(options.model), options.texts, options.length)
    arena = Arena(options.part.endswith("offload"))
    batch = packed([Example(t, torch.cat([t[1:], torch.tensor([-100])]), 0, 1) for t in ids])
    batch = {name: tensor.to(device) for name, tensor in batch.items()}

    def step() -> float:
        loss = loss_of(model, batch, arena=arena)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return timed(step, options)


def theirs(options: argparse.Namespace) -> dict[str, Any]:
    """SFTTrainer as TRL documents it, on the same tokens."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    on_cpu, (dtype, *kind) = options.device == "cpu", options.part.removeprefix("trl-").split("-")
    dtype = getattr(torch, dtype)
    placed = {} if on_cpu else {"device_map": options.device}
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, **placed)
    ids = texts(AutoTokenizer.from_pretrained(options.model), options.texts, options.length)
    rows = Dataset.from_list([{"input_ids": t.tolist()} for t in ids])
    moments: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            moments.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if not on_cpu:
                torch.cuda.synchronize()
            moments.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            use_cpu=on_cpu,
            use_liger_kernel="liger" in kind,
            activation_offloading="offload" in kind,
            bf16=dtype is torch.bfloat16,
            max_length=options.length,
            per_device_train_batch_size=options.texts,
            max_steps=options.steps,
            gradient_checkpointing=True,
            report_to=[],
            save_strategy="no",
            optim="adamw_torch",
        )
        lora = LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = SFTTrainer(model, config, train_dataset=rows, peft_config=lora, callbacks=[Clock()])
        with PEAKS[options.device]() as peak:
            trainer.train()
    spent = [end - begin for begin, end in zip(moments[::2], moments[1::2], strict=True)]
    return figures(options, spent, peak)


def timed(step: Callable[[], float], options: argparse.Namespace) -> dict[str, Any]:
    spent = []
    with PEAKS[options.device]() as peak:
        for _ in range(options.steps):
            begin = time.perf_counter()
            step()
            spent.append(time.perf_counter() - begin)
    return figures(options, spent, peak)


def figures(options: argparse.Namespace, spent: list[float], peak: Peak | GpuPeak) -> dict[str, Any]:
    """Seconds of a step after the first one, and the peak."""
    seconds = round(statistics.median(spent[1:] or spent), 3)
    return {"part": options.part, "seconds": seconds, "peak_above_model_gb": peak.above()}


class GpuPeak:
    """Most memory that torch has taken on a GPU while the block runs, above what it had taken before."""

    def __enter__(self) -> GpuPeak:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_: object) -> None:
        torch.cuda.synchronize()

    def above(self) -> float:
        return round((torch.cuda.max_memory_allocated() - self.before) / 1e9, 3)


class Peak:
    """Most memory resident while the block runs, above what was resident before."""

    def __enter__(self) -> Peak:
        self.before = self.most = _resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, _resident())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def above(self) -> float:
        return round((self.most - self.before) / 1e9, 3)


PEAKS = {"cpu": Peak, "cuda": GpuPeak}


def _resident() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"))
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
