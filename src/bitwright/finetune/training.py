"""What a fine-tuning is asked for, and what came of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from bitwright.finetune.answers import Answers
from bitwright.host.places import without_place

QLORA, LORA, QAT, SCALES = METHODS = ("qlora", "lora", "qat", "scales")
IN_FORMAT = (QAT, SCALES)  # methods that train what a file holds
OF_A_BASE = ("budget", "plan", "base")  # what is asked of a model that is quantized before it is trained beside
ADAMW, ADAMW_8BIT = OPTIMIZERS = ("adamw", "adamw8bit")
BEFORE, AFTER, WRITTEN = "answers before", "answers after", "answers of what was written"
ASKED, ASKED_SEEING = 32, 8  # kept texts that a fresh process is asked; the pixels of all of them are in memory at once
TEXTS = "texts"  # in the note beside an adapter: the hash of what was learnt


@dataclass(frozen=True)
class Training:
    """What a fine-tuning is asked for. Names and defaults are those of the command line."""

    method: str = QLORA  # an adapter beside packed weights; lora: beside MODEL as it is; qat: the codes; scales: their scales
    source: str = ""  # the 16-bit model of a checkpoint that quantize wrote, where its plan does not tell
    budget: str = "+10%"  # qlora, of a 16-bit model, which is quantized first, as quantize takes it
    plan: str = ""  # the same: a plan.json instead
    base: str = ""  # the same: where the quantized model is kept; beside the adapter where it is left out
    train: tuple[str, ...] = ("text",)  # parts of a model that sees: text, vision, projector
    targets: tuple[str, ...] = ("*",)
    rank: int = 16
    alpha: float = 16.0
    rslora: bool = False
    length: int = 1024  # tokens of a text
    batch: int = 4  # texts of a pass
    accumulate: int = 1  # passes of a step
    learning_rate: float = 2e-4
    epochs: float = 1.0
    max_steps: int = 0  # 0: by epochs
    held_out: float = 0.05  # share of the texts that are kept apart
    template: str = ""
    answer: str = ""
    sheet: str = ""
    rows_together: int = 1
    optimizer: str = ADAMW  # adamw8bit: its states in 8 bits a number
    offload: bool = False  # from a GPU: what is kept for the backward pass lies in the processor's memory
    liger: bool = False  # on a GPU: Liger's kernels for norms, gates and positions
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def unused(self) -> tuple[str, ...]:
        """What was asked for and has no meaning for the method, by its name on the command line."""
        of_rank = ("alpha", "rslora")
        without = {SCALES: ("rank", *of_rank), QAT: of_rank if self.rank == 0 else ()}.get(self.method, ())
        return self.given(*without, *(OF_A_BASE if self.method != QLORA else ()))

    def given(self, *names: str) -> tuple[str, ...]:
        """Those of ``names`` that are not as they are left out, by their names on the command line."""
        return tuple(f"--{name}" for name in names if getattr(self, name) != getattr(Training, name))

    def of_a_gpu(self) -> tuple[str, ...]:
        """What was asked for that needs a GPU, by its name on the command line."""
        return self.given("offload", "liger")

    @property
    def strength(self) -> float:
        """What a low-rank change is multiplied with, times its rank."""
        return self.alpha * (math.sqrt(self.rank) if self.rslora else 1.0)

    def of_trainer(self, apart: bool = False) -> dict[str, Any]:
        """The same in the words of ``train``. ``apart``: each text is a pass of its own."""
        return {
            "per_device_train_batch_size": 1 if apart else self.batch,
            "gradient_accumulation_steps": self.accumulate * (self.batch if apart else 1),
            "learning_rate": self.learning_rate,
            "num_train_epochs": self.epochs,
            "max_steps": self.max_steps or -1,
            "eight_bit": self.optimizer == ADAMW_8BIT,
            "offload": self.offload,
            "liger": self.liger,
            "seed": self.seed,
        }

    def told(self) -> dict[str, Any]:
        """For a file that others may read."""
        return asdict(self) | {name: without_place(getattr(self, name)) for name in ("source", "plan", "base")}

    def passes(self, n_texts: int) -> float:
        """What training on ``n_texts`` costs, in texts that are only read: forward, again, and backward."""
        return 4.0 * (self.max_steps * self.batch * self.accumulate or self.epochs * n_texts)


@dataclass(frozen=True)
class AsWritten:
    """Answers to the first ``n_texts`` kept texts: in memory, and in a fresh process by what was written."""

    n_texts: int
    in_memory: Answers
    by_program: Answers


@dataclass(frozen=True)
class Outcome:
    """What came of it. ``before`` and ``after``: on texts that were kept apart."""

    before: Answers
    after: Answers
    steps: int
    losses: tuple[tuple[int, float], ...]  # of the texts that were learnt from, by step
    n_trained: int  # parameters
    n_texts: int
    seconds: float
    moved: float = 0.0  # share of the codes that are others than before, where codes are trained
    written: AsWritten | None = None  # None where no program ran it
