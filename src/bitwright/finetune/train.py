"""The loop: transformers' Trainer with our packing, our loss, and adapters in place of whole checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from bitsandbytes.optim import AdamW8bit
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from bitwright.checkpoint.output import write_failed
from bitwright.errors import BitwrightError, fail, in_one_line
from bitwright.finetune.arena import Arena
from bitwright.finetune.inputs import LABELS, OURS, ROWS
from bitwright.finetune.loss import Target, drawn, summed_loss
from bitwright.finetune.model import head_of, require_known_head
from bitwright.finetune.quant_linear import QuantLinear
from bitwright.finetune.tokens import IGNORED
from bitwright.host.heap import return_free_pages
from bitwright.host.progress import Advance, Reporter
from bitwright.host.texts import UnreadableError, read_object
from bitwright.models.stacks import stacks_of

TRAIN, LIKELIEST = "train", "likeliest"
STEPS_BETWEEN = 25  # two checkpoints, from which a killed run goes on
WARMUP = 0.05  # share of the steps in which the learning rate rises
TRAINED = "trained.safetensors"  # in a checkpoint
DISTRIBUTION = (LIKELIEST, "log_p", "log_tail")  # names of inputs
LIGER = {"cross_entropy": False, "fused_linear_cross_entropy": False}  # of its kernels all but these: the loss is ours
ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def loss_of(model: Any, inputs: dict[str, Tensor], n_labels: Tensor | int | None = None, arena: Arena | None = None) -> Tensor:
    """Mean distance from what the inputs say should follow; over ``n_labels`` tokens, those of a whole step, where a step has
    several parts: the negative log-likelihood of the labels, or where the inputs hold distributions the divergence from them,
    in training estimated from part of the vocabulary. ``arena``: where what the backward pass needs is kept.
    """
    states, target = learnt_of(model, inputs, arena)
    head = head_of(model)
    if model.training and LIKELIEST in inputs:
        head, target = drawn(head, target)
    return summed_loss(states, head, target) / (len(states) if n_labels is None else n_labels)


def learnt_of(model: Any, inputs: dict[str, Tensor], arena: Arena | None = None) -> tuple[Tensor, Target]:
    """The states [T, K] before the head of those tokens of ``inputs`` that carry loss, and what should follow them."""
    labels = inputs[LABELS].reshape(-1)
    config = model.config.get_text_config()
    entries = (config.num_hidden_layers + 1) * labels.numel() * config.hidden_size
    on_cpu = labels.device.type == "cpu"
    in_heap, width = (entries, torch.float32.itemsize) if on_cpu else (0, torch.bfloat16.itemsize)
    return_free_pages(in_heap)  # what the backward pass of the step before leaves in pieces
    with nullcontext() if arena is None else arena.keeping(entries * width):
        given = {name: tensor for name, tensor in inputs.items() if name not in (*OURS, *DISTRIBUTION)}
        body = model.base_model(**given, use_cache=False)
    learnt = labels != IGNORED
    return_free_pages(in_heap)
    return body.last_hidden_state.flatten(0, 1)[learnt], _target(inputs, learnt)


def _target(inputs: dict[str, Tensor], learnt: Tensor) -> Target:
    """What the tokens ``learnt`` should be followed by."""
    if LIKELIEST not in inputs:
        return Target.of_labels(inputs[LABELS].reshape(-1)[learnt])
    return Target(*(inputs[name].flatten(0, 1)[learnt] for name in DISTRIBUTION))


class PartTrainer(Trainer):
    """Saves and loads nothing but what is trained.

    ``rates``: of parameters whose names end so, as factors of the learning rate. ``eight_bit``: keep the optimizer's states in
    8 bits a number (bitsandbytes, arXiv 2110.02861). ``alike``: each pass of a step counts the same, whatever labels it has.
    ``offload``: what a GPU keeps for the backward pass lies in the processor's memory.
    """

    optimizer: Any

    def __init__(
        self,
        *args: Any,
        rates: Mapping[str, float] | None = None,
        eight_bit: bool = False,
        alike: bool = False,
        offload: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rates, self.eight_bit = dict(rates or {}), eight_bit
        self.model_accepts_loss_kwargs = not alike  # our loss counts the labels of the whole step
        self._loss_shifts_labels = False  # ours stand where they are predicted, the first one of a row too
        self.remove_callback(PrinterCallback)  # prints every step to standard output, where --json belongs
        self.arena = Arena(offload)
        self._rows: list[int] = []  # of the step at hand

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        loss = loss_of(model, inputs, num_items_in_batch, self.arena if model.training else None)
        rows = inputs[ROWS].tolist() if ROWS in inputs else []
        if not bool(torch.isfinite(loss)):
            raise self._not_finite(f"the loss is {loss.item()}", self._at_fault(model, rows) or rows)
        self._rows += rows
        return (loss, {"loss": loss}) if return_outputs else loss

    def require_finite_gradients(self) -> None:
        """Raise BitwrightError before an update that would leave nothing but NaN, and a checkpoint of that."""
        rows, self._rows = self._rows, []
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None] if self.model is not None else []
        if not bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            raise self._not_finite("the gradient is no number", rows)

    def _at_fault(self, model: Any, rows: Sequence[int]) -> list[int]:
        """Those of ``rows`` whose loss is no number when they are alone; none of texts without a row."""
        if not rows:
            return []
        examples = [example for example in cast(Any, self.train_dataset) if example.row in rows]
        with torch.no_grad():
            losses = [loss_of(model, self._prepare_inputs(self.data_collator([example]))) for example in examples]
        return [example.row for example, loss in zip(examples, losses, strict=True) if not bool(torch.isfinite(loss))]

    def _not_finite(self, saw: str, rows: Sequence[int]) -> BitwrightError:
        kept = max((step_of(path) for path in Path(self.args.output_dir or ".").glob("checkpoint-*")), default=0)
        stays = f"; the checkpoint of step {kept} stays" if kept else ""
        return fail(
            "finetune/not-finite",
            f"step {self.state.global_step + 1}" + (f", rows {', '.join(map(str, sorted(rows)))}" if rows else ""),
            saw=saw,
            wanted="a number",
            help=f"a smaller --learning-rate, or look at these rows{stays}",
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        if self.optimizer is None:
            assert self.model is not None
            named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
            groups = []
            for ending, rate in (*self.rates.items(), ("", 1.0)):
                taken = [(name, p) for name, p in named if name.endswith(ending)]
                named = [pair for pair in named if pair[0] not in {name for name, _ in taken}]
                groups.append({"params": [p for _, p in taken], "lr": rate * self.args.learning_rate})
            kind = AdamW8bit if self.eight_bit else partial(torch.optim.AdamW, fused=True)
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer = kind([group for group in groups if group["params"]], betas=betas, weight_decay=0.0)
        return super().create_optimizer(*args, **kwargs)

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        with torch.no_grad():
            return loss_of(model, self._prepare_inputs(inputs)), None, None

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError, SafetensorError) as error:  # each library says in its own way that a disk is full
            raise write_failed(Path(self.args.output_dir or "."), OSError(in_one_line(error))) from error

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_of(self.model), folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        known = load_file(Path(resume_from_checkpoint) / TRAINED)
        own = model or self.model
        assert own is not None
        with torch.no_grad():
            for name, parameter in own.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(known[name])


def trained_of(model: Any) -> dict[str, Tensor]:
    """Everything that is trained, by name."""
    named = model.named_parameters()
    return {name: parameter.detach().cpu().contiguous() for name, parameter in named if parameter.requires_grad}


def train(
    model: Any,
    lessons: Sequence[Any],
    collate: Callable[[Any], dict[str, Tensor]],
    folder: Path,
    reporter: Reporter,
    rates: Mapping[str, float] | None = None,
    recomputed: bool = True,
    eight_bit: bool = False,
    alike: bool = False,
    offload: bool = False,
    liger: bool = False,
    **given: Any,
) -> tuple[tuple[int, float], ...]:
    """Train on ``lessons``, on from the last checkpoint in ``folder``; the loss of each step, with its number.

    ``collate`` makes the inputs of ``loss_of`` from some of them; ``given``: settings of transformers' Trainer.
    ``recomputed``: whether blocks are run again in the backward pass, which takes a quarter longer and far less memory.
    ``alike``: each pass of a step counts the same, whatever labels it has. ``offload``: what a GPU keeps for the backward pass
    lies in the processor's memory. ``liger``: Liger's kernels (arXiv 2410.10989), which take the place of the class's own parts
    in this process, in every model of its class.
    """
    require_known_head(model)
    kernels = _liger(model, reporter) if liger else {}
    settings = arguments(folder, next(model.parameters()).device, **given, **kernels)
    if recomputed:
        recompute(model)
    with reporter.stage(TRAIN) as advance:
        watch = [Told(advance)]
        ours: dict[str, Any] = {"rates": rates, "eight_bit": eight_bit, "alike": alike, "offload": offload}
        trainer = PartTrainer(model, settings, data_collator=collate, train_dataset=lessons, callbacks=watch, **ours)
        trainer.add_callback(Careful(trainer))
        left = sorted(folder.glob("checkpoint-*"), key=step_of)
        whole = [(path, state) for path in left if (state := _state_of(path))]
        last, state = whole[-1] if whole else (None, {})
        if last:
            reporter.say(f"goes on from step {step_of(last)}")
        if last and state["global_step"] >= state["max_steps"]:  # the Trainer would take one step more
            trainer._load_from_checkpoint(str(last))
        else:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
            state = {"log_history": trainer.state.log_history}
    losses = tuple((int(line["step"]), float(line["loss"])) for line in state["log_history"] if "loss" in line)
    if not losses:
        raise fail("finetune/no-steps", "the training", saw="no step", wanted="one or more", help="--max-steps 10")
    return losses


def step_of(checkpoint: Path) -> int:
    """The step after which ``checkpoint`` was written, by its name."""
    return int(checkpoint.name.rpartition("-")[2])


def _state_of(checkpoint: Path) -> dict[str, Any]:
    """How far the training was; nothing of one that was not written to its end: the state comes last, and a full disk or a
    kill leaves it empty or cut."""
    try:
        return read_object(checkpoint / "trainer_state.json") if (checkpoint / TRAINED).exists() else {}
    except UnreadableError:
        return {}


def _liger(model: Any, reporter: Reporter) -> dict[str, Any]:
    """Settings of transformers' Trainer for Liger's kernels; says so where there are none for the class of ``model``."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        reporter.say(f"note: Liger has no kernels for {model.config.model_type}; --liger changes nothing")
        return {}
    return {"use_liger_kernel": True, "liger_kernel_config": LIGER}


class Told(TrainerCallback):
    """Passes on how far the training is."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(state.global_step, state.max_steps)


class Careful(TrainerCallback):
    """Stops before an update by gradients that are no numbers."""

    def __init__(self, trainer: PartTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.require_finite_gradients()


def recompute(model: Any) -> None:
    """Keep of each block only what it was given, and run it again in the backward pass."""
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": True})  # what is kept can then be put elsewhere
    for stack in stacks_of(model, model.config):
        blocks = model.get_submodule(stack.path)
        if not any(parameter.requires_grad for parameter in blocks.parameters()):
            for block in blocks.modules():
                block.gradient_checkpointing = False  # nothing passes back through it


@dataclass
class OneDevice(TrainingArguments):
    """Settings of transformers' Trainer for a model that lies on one device, whatever others there are."""

    model_device: str = "cpu"

    @cached_property
    def _setup_devices(self) -> torch.device:
        super()._setup_devices  # what the distributed state is, is found out there  # noqa: B018
        device = torch.device(self.model_device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
            self._n_gpu = 1
        return device

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Rounded down: the first step of a rise learns nothing, and a short training has none to lose."""
        return int(self.warmup_steps * num_training_steps)


def arguments(folder: Path, device: torch.device, **given: Any) -> TrainingArguments:
    """The Trainer's own settings, with the defaults that suit this loop, for a model on ``device``."""
    return OneDevice(
        model_device=str(device),
        output_dir=str(folder),
        use_cpu=device.type == "cpu",
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP,
        weight_decay=0.0,
        save_steps=STEPS_BETWEEN,
        remove_unused_columns=False,
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        log_level="error",
        save_total_limit=1,
        dataloader_pin_memory=False,
        label_names=[LABELS],
        **given,
    )


def changes_of(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each weight that has one its low-rank change, as it was trained: A [R, K] and B [N, R]."""
    return {
        f"{name}.weight": (module.lora_a.detach().cpu().contiguous(), module.lora_b.detach().cpu().contiguous())
        for name, module in model.named_modules()
        if isinstance(module, QuantLinear) and module.lora_a is not None and module.lora_b is not None
    }


def adapter_of(model: Any) -> dict[str, Tensor]:
    """The trained tensors under the names of stock PEFT."""
    found: dict[str, Tensor] = {}
    for name, (a, b) in changes_of(model).items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        found |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
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
