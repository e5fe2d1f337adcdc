"""The loop: transformers' Trainer with our packing, our loss, and adapters in place of whole checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from bitwright.errors import fail
from bitwright.finetune.arena import Arena
from bitwright.finetune.loss import summed_loss
from bitwright.finetune.model import head_of
from bitwright.finetune.quant_linear import QuantLinear
from bitwright.finetune.tokens import IGNORED, Example
from bitwright.host.heap import return_free_pages
from bitwright.host.progress import Advance

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def packed(batch: Sequence[Example]) -> dict[str, Tensor]:
    """Texts as rows as long as the longest of them, several short ones in a row: positions restart with each, which keeps them
    apart in attention. Attention costs the square of a row, so rows are never longer than that.

    What is left of a row is a text of its own without labels.
    """
    width = max(len(example.ids) for example in batch)
    rows: list[list[Example]] = []
    for example in sorted(batch, key=lambda one: -len(one.ids)):  # first fit, the longest first
        room = next((row for row in rows if sum(len(one.ids) for one in row) + len(example.ids) <= width), None)
        if room is None:
            rows.append([example])
        else:
            room.append(example)
    filled = [_row(row, width) for row in rows]
    return {name: torch.stack([row[name] for row in filled]) for name in ("input_ids", "position_ids", "labels")}


def _row(texts: Sequence[Example], width: int) -> dict[str, Tensor]:
    rest = width - sum(len(text.ids) for text in texts)
    if rest:
        texts = [*texts, Example(texts[0].ids[:1].expand(rest), torch.full((rest,), IGNORED), 0, 0)]
    return {
        "input_ids": torch.cat([text.ids for text in texts]),
        "position_ids": torch.cat([torch.arange(len(text.ids)) for text in texts]),
        "labels": torch.cat([text.labels for text in texts]),
    }


def loss_of(model: Any, inputs: dict[str, Tensor], n_labels: Tensor | int | None = None, arena: Arena | None = None) -> Tensor:
    """Mean negative log-likelihood of the labels; over ``n_labels``, those of a whole step, where a step has several parts.
    ``arena``: where what the backward pass needs is kept."""
    labels = inputs["labels"].reshape(-1)
    config = model.config.get_text_config()
    entries = (config.num_hidden_layers + 1) * labels.numel() * config.hidden_size
    return_free_pages(entries)  # what the backward pass of the step before leaves in pieces
    with nullcontext() if arena is None else arena.keeping(entries * torch.float32.itemsize):
        body = model.base_model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False)
    learnt = labels != IGNORED
    return_free_pages(entries)
    learnt_states = body.last_hidden_state.flatten(0, 1)[learnt]
    head, scale, cap = head_of(model)
    total = summed_loss(learnt_states, head, labels[learnt], scale, cap)
    return total / (int(learnt.sum()) if n_labels is None else n_labels)


class AdapterTrainer(Trainer):
    """Saves and loads nothing but the adapter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)  # prints every step to standard output, where --json belongs
        self.arena = Arena()

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        loss = loss_of(model, inputs, num_items_in_batch, self.arena if model.training else None)
        if not bool(torch.isfinite(loss)):
            raise fail(
                "finetune/not-finite",
                f"step {self.state.global_step + 1}",
                saw=f"the loss is {float(loss)}",
                wanted="a number",
                help="a smaller --learning-rate; the last good adapter is kept",
            )
        return (loss, {"loss": loss}) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        with torch.no_grad():
            return loss_of(model, self._prepare_inputs(inputs)), None, None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        save_file(adapter_of(self.model), folder / ADAPTER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        put_adapter(model or self.model, load_file(Path(resume_from_checkpoint) / ADAPTER))


class Told(TrainerCallback):
    """Passes on how far the training is."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(state.global_step, state.max_steps)


def recompute(model: Any) -> None:
    """Keep of each block only what it was given, and run it again in the backward pass."""
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": True})  # what is kept can then be put elsewhere


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    """The Trainer's own settings, with the defaults that suit this loop."""
    return TrainingArguments(
        output_dir=str(folder),
        remove_unused_columns=False,
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        log_level="error",
        save_total_limit=1,
        dataloader_pin_memory=False,
        label_names=["labels"],
        **given,
    )


def adapter_of(model: Any) -> dict[str, Tensor]:
    """The trained tensors under the names of stock PEFT."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear) and module.lora_a is not None and module.lora_b is not None:
            found[f"base_model.model.{name}.lora_A.weight"] = module.lora_a.detach().cpu().contiguous()
            found[f"base_model.model.{name}.lora_B.weight"] = module.lora_b.detach().cpu().contiguous()
    return found


def put_adapter(model: Any, tensors: dict[str, Tensor]) -> None:
    """Set the trained tensors to ``tensors``."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, QuantLinear) and module.lora_a is not None and module.lora_b is not None:
                module.lora_a.copy_(tensors[f"base_model.model.{name}.lora_A.weight"])
                module.lora_b.copy_(tensors[f"base_model.model.{name}.lora_B.weight"])


def write_adapter(folder: Path, model: Any, base: str, names: list[str], rank: int, alpha: float, rslora: bool) -> None:
    """Write what ``PeftModel.from_pretrained`` reads: the tensors, and the configuration as PEFT itself writes it."""
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=names,
        use_rslora=rslora,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    written["target_modules"] = sorted(names)  # a set has no order, and the same run writes the same bytes
    (folder / CONFIG).write_text(json.dumps(written, indent=1), encoding="utf-8")
    save_file(adapter_of(model), folder / ADAPTER)
