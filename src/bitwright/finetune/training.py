"""What a fine-tuning is asked for, and what came of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from bitwright.finetune.answers import Answers
from bitwright.host.places import without_place

LORA, QAT, SCALES = METHODS = ("lora", "qat", "scales")
IN_FORMAT = (QAT, SCALES)  # methods that train what a file holds
ADAMW, ADAMW_8BIT = OPTIMIZERS = ("adamw", "adamw8bit")
BEFORE, AFTER = "answers before", "answers after"
TEXTS = "texts"  # in the note beside an adapter: the hash of what was learnt


@dataclass(frozen=True)
class Training:
    """What a fine-tuning is asked for. Names and defaults are those of the command line."""

    method: str = LORA  # beside frozen weights, packed or not; qat: the codes themselves; scales: what they are multiplied with
    source: str = ""  # the 16-bit model of a checkpoint that quantize wrote, where its plan does not tell
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
        return tuple(f"--{name}" for name in without if getattr(self, name) != getattr(Training, name))

    def of_a_gpu(self) -> tuple[str, ...]:
        """What was asked for that needs a GPU, by its name on the command line."""
        return tuple(f"--{name}" for name in ("offload", "liger") if getattr(self, name))

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
        return asdict(self) | {"source": without_place(self.source)}

    def passes(self, n_texts: int) -> float:
        """What training on ``n_texts`` costs, in texts that are only read: forward, again, and backward."""
        return 4.0 * (self.max_steps * self.batch * self.accumulate or self.epochs * n_texts)


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
