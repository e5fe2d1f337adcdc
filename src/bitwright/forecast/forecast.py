"""What a run will take, before it begins: time by stage, peak memory, disk, and the size of the result."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bitwright.data.calibration import PICTURES, RESIDENT_SHARE, SELF, calibration_of, counts_of, resident_dtype
from bitwright.data.folds import SHARES
from bitwright.forecast.speed import Speed
from bitwright.host.schedule import ANSWER, CHECK, COMPARE, FORWARD, LABELS, ROUND, WRITE, WRITE_TEXT
from bitwright.measure.measure import work_nbytes
from bitwright.measure.memory import LIBRARIES_BYTES, peak
from bitwright.measure.moments import rows_may_share
from bitwright.measure.scores import SHORT, UNSEEN
from bitwright.measure.subject import Subject
from bitwright.models.spec import Kind, Role, Weight
from bitwright.plan import Plan

# Seconds over those that bare products at full speed would take, fitted to runs of the demo model and checked on random llamas
# of other sizes (docs/LOG.md, 2026-11-26, forecasts).
WRITING, RUNNING, DRAWING, BACKWARD, COMPARING = 2.4, 1.7, 2.4, 1.7, 2.1
BLOCK_CALLS = 100  # of a block on a GPU, in the time of a small operation: about fifty, and Python between them (not fitted)
BACK_CALLS = 3  # times a forward pass: the block run again, and backward
HEAP = 1.2  # resident memory over what is used, unless --max-memory keeps freed memory from staying
START_SECONDS = 8.0  # of a process that loads the libraries
DISK_NBYTES = 300e6  # a second, decoded and packed on the way
RIVALS = 5  # that a result is compared with; two of them are ablations
WRITTEN = 2  # of them are files of ours, the others are quantized while they are loaded
ANSWER_TOKENS = 24  # that a model answers about a picture


@dataclass(frozen=True)
class Forecast:
    """``seconds`` by stage; ``peak_nbytes`` of the process, ``disk_nbytes`` while it runs, ``nbytes`` of the result."""

    seconds: dict[str, float]
    peak_nbytes: int
    disk_nbytes: int
    nbytes: int
    damage_nats: float | None = None  # predicted, where a measurement exists

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def forecast_of(subject: Subject, speed: Speed, plan: Plan) -> Forecast:
    """What quantizing ``subject`` to something of the size of ``plan``, and the proof, take at ``speed``."""
    nbytes, n_rivals = plan.nbytes, RIVALS if subject.settings.compare else RIVALS - 2
    spec, settings = subject.source.spec, subject.settings
    patches = subject.viewer.patches() if subject.viewer else 0
    costs = _Costs(subject, speed)
    held = peak(spec, subject.method, settings, subject.precision, patches).nbytes
    dtype = resident_dtype(subject.skeleton, settings, subject.device)
    resident = int(RESIDENT_SHARE * _nbytes_of_16bit(subject) / 2 * dtype.itemsize) if costs.own or costs.pictures else 0
    return Forecast(
        costs.measuring() | costs.proving(nbytes, n_rivals),
        LIBRARIES_BYTES + max(int((1.0 if settings.max_memory else HEAP) * held), resident),
        work_nbytes(subject) + (1 + WRITTEN) * nbytes,
        nbytes,
    )


def measuring_seconds(subject: Subject, speed: Speed) -> dict[str, float]:
    """Seconds of each stage of a measurement."""
    return _Costs(subject, speed).measuring()


def _nbytes_of_16bit(subject: Subject) -> int:
    """Bytes of the source's tensors in 16 bit."""
    spec = subject.source.spec
    return 2 * sum(weight.n_rows * weight.n_cols for weight in spec.weights) + spec.kept_nbytes


class _Costs:
    """Arithmetic of each stage, over the machine's speed."""

    def __init__(self, subject: Subject, speed: Speed) -> None:
        self.subject, self.speed = subject, speed
        calibration, _ = calibration_of(subject.settings, subject.skeleton)
        patches = subject.viewer.patches() if subject.viewer else 0
        spec, settings = subject.source.spec, subject.settings
        counts = counts_of(calibration, settings.sequences, seeing=subject.viewer is not None)
        pictures = counts.get(PICTURES, 0)
        self.own, self.pictures = counts.get(SELF, 0) * settings.length, pictures
        self.rows = {stack.name: pictures * patches for stack in spec.stacks}
        self.rows[spec.text.name] = settings.sequences * settings.length
        linear = [w for w in spec.weights if w.kind == Kind.LINEAR]
        self.blocks = [w for w in linear if w.at.stack in self.rows]
        self.head = spec.text.width * self._vocabulary()
        body = sum(w.n_rows * w.n_cols for w in self.blocks if w.at.stack == spec.text.name)
        self.whole = 2 * (body + self.head)  # operations for one token
        self.calling = BLOCK_CALLS * speed.call * sum(stack.n_blocks for stack in spec.stacks)  # for one pass of the model

    def _vocabulary(self) -> int:
        spec = self.subject.source.spec
        kept = [k.shape[0] for k in spec.kept if k.role in (Role.EMBEDDING, Role.HEAD) and len(k.shape) == 2]
        return max([*kept, *(w.n_rows for w in spec.vocabulary)], default=0)

    def measuring(self) -> dict[str, float]:
        """Seconds of each stage up to the table of damages."""
        tokens, products = self.rows[self.subject.source.spec.text.name], self.speed.products
        through = sum(2 * self.rows[w.at.stack] * w.n_rows * w.n_cols for w in self.blocks)
        passes = math.ceil(tokens / self.subject.method.batch_tokens)
        steps = self.subject.settings.length if self.own else 0  # of writing, all texts at once
        stages = {
            WRITE_TEXT: WRITING * self.own * self.whole / products + steps * self.calling,
            ANSWER: self.pictures * ANSWER_TOKENS * (WRITING * self.whole / products + self.calling),
            FORWARD: RUNNING * through / products + passes * self.calling,
            LABELS: DRAWING * tokens * 4 * self.head / products,
            ROUND: sum(map(self._of_weight, self.blocks))
            + BACKWARD * 2 * through / products
            + BACK_CALLS * passes * self.calling,
            **{f"{ROUND} {w.role}": self._of_weight(w) for w in self.subject.source.spec.vocabulary},
        }
        return {stage: seconds for stage, seconds in stages.items() if seconds > 0}

    def proving(self, nbytes: int, n_rivals: int) -> dict[str, float]:
        """Seconds of writing and comparing."""
        settings = self.subject.settings
        held = settings.held_out_sequences * settings.held_out_length
        predicting = SHARES[1] * settings.sequences * settings.length
        load = _nbytes_of_16bit(self.subject) / DISK_NBYTES
        return {
            WRITE: (n_rivals + 1) * nbytes / DISK_NBYTES,
            COMPARE: START_SECONDS + (n_rivals + 2) * (load + self._compared(held)),
            CHECK: START_SECONDS + 2 * (load + self._compared(predicting)),
        }

    def _compared(self, tokens: float) -> float:
        return COMPARING * tokens * self.whole / self.speed.products

    def _of_weight(self, w: Weight) -> float:
        """Second moments, their factors, the scores of all formats, and rounding."""
        formats, n, k = len(self.subject.method.formats[w.name]), w.n_rows, w.n_cols
        rows = self.rows.get(w.at.stack, self.rows[self.subject.source.spec.text.name])
        scored = rows * sum(SHARES)
        rounded = rows - scored
        short = rounded < SHORT * k
        moments = 3 * (rounded + (rows * SHARES[0] if short else 0)) * k * k
        scores = 2 * scored * n * k + 2 * self.subject.settings.sequences * sum(SHARES) * formats * n * k
        outputs = 2 * UNSEEN * (formats + 1) * n * k
        factors = (6 + 2 * short) * k**3
        if rows_may_share(n, k):
            moments += 2 * rounded * n * n
            factors += 6 * n**3
        rounding = (1 + short) * k * (n * self.speed.rounding + self.speed.column)
        return (moments + scores + outputs + factors) / self.speed.products + rounding
