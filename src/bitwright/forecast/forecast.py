"""What a run will take, before it begins: time by stage, peak memory, disk, and the size of the result."""

from __future__ import annotations

from dataclasses import dataclass

from bitwright.data.calibration import PICTURES, RESIDENT_SHARE, SELF, calibration_of, counts_of
from bitwright.data.folds import SHARES
from bitwright.forecast.speed import Speed
from bitwright.host.schedule import ANSWER, CHECK, COMPARE, FORWARD, LABELS, ROUND, WRITE, WRITE_TEXT
from bitwright.measure.memory import LIBRARIES_BYTES, peak
from bitwright.measure.scores import SHORT, UNSEEN
from bitwright.measure.subject import Subject
from bitwright.models.spec import Kind, Role, Weight

# Seconds over those that bare products at full speed would take, fitted to runs of the demo model and checked on random llamas
# of other sizes (docs/LOG.md, 2026-11-26, forecasts).
WRITING, RUNNING, DRAWING, BACKWARD, SUMMING, FACTORING, COMPARING = 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0
START_SECONDS = 8.0  # of a process that loads the libraries
DISK_NBYTES = 300e6  # a second, decoded and packed on the way
ANSWER_TOKENS = 24  # that a model answers about a picture


@dataclass(frozen=True)
class Forecast:
    """``seconds`` by stage in order. ``peak_nbytes`` of the process, ``disk_nbytes`` while it runs, ``nbytes`` of the result."""

    seconds: dict[str, float]
    peak_nbytes: int
    disk_nbytes: int
    nbytes: int
    damage_nats: float | None = None  # predicted, where a measurement exists

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def forecast_of(subject: Subject, speed: Speed, nbytes: int, n_rivals: int) -> Forecast:
    """What quantizing ``subject`` to ``nbytes`` and comparing it with ``n_rivals`` others takes at ``speed``."""
    calibration, _ = calibration_of(subject.settings, subject.skeleton)
    spec, settings = subject.source.spec, subject.settings
    patches = subject.viewer.patches() if subject.viewer else 0
    weights = nbytes_of_16bit(subject)
    held = peak(spec, subject.method, settings, subject.precision, patches).nbytes
    resident = int(RESIDENT_SHARE * weights) if SELF in calibration or calibration in ("mixed", "") else 0
    codes = sum(subject.container.nbytes(w, f, subject.source) for w in spec.weights for f in subject.method.formats[w.name])
    states = sum((stack.n_blocks + 2) * stack.width for stack in spec.stacks) * settings.sequences * settings.length
    return Forecast(
        _Costs(subject, speed, calibration, patches).seconds(nbytes, n_rivals),
        LIBRARIES_BYTES + max(held, resident),
        codes + states * subject.precision.kept.itemsize + nbytes * 3,
        nbytes,
    )


def nbytes_of_16bit(subject: Subject) -> int:
    """Bytes of the source's tensors in 16 bit."""
    spec = subject.source.spec
    return 2 * sum(weight.n_rows * weight.n_cols for weight in spec.weights) + spec.kept_nbytes


class _Costs:
    """Arithmetic of each stage, over the machine's speed."""

    def __init__(self, subject: Subject, speed: Speed, calibration: str, patches: int) -> None:
        self.subject, self.speed = subject, speed
        spec, settings = subject.source.spec, subject.settings
        counts = counts_of(calibration, settings.sequences, seeing=subject.viewer is not None)
        pictures = counts.get(PICTURES, 0)
        self.own, self.pictures = counts.get(SELF, 0) * settings.length, pictures
        self.rows = {stack.name: pictures * patches for stack in spec.stacks}
        self.rows[spec.text.name] = settings.sequences * settings.length
        linear = [w for w in spec.weights if w.kind == Kind.LINEAR]
        self.blocks = [w for w in linear if w.at.stack in self.rows]
        self.head = spec.text.width * self._vocabulary()
        self.body = sum(w.n_rows * w.n_cols for w in self.blocks if w.at.stack == spec.text.name)

    def _vocabulary(self) -> int:
        spec = self.subject.source.spec
        kept = [k.shape[0] for k in spec.kept if k.role in (Role.EMBEDDING, Role.HEAD) and len(k.shape) == 2]
        return max([*kept, *(w.n_rows for w in spec.vocabulary)], default=0)

    def seconds(self, nbytes: int, n_rivals: int) -> dict[str, float]:
        settings, products = self.subject.settings, self.speed.products
        tokens = settings.sequences * settings.length
        through = sum(2 * self.rows[w.at.stack] * w.n_rows * w.n_cols for w in self.blocks)
        whole = 2 * (self.body + self.head)
        held = settings.held_out_sequences * settings.held_out_length
        load = nbytes_of_16bit(self.subject) / DISK_NBYTES
        stages = {
            WRITE_TEXT: WRITING * self.own * whole / products if self.own else 0.0,
            ANSWER: WRITING * self.pictures * ANSWER_TOKENS * whole / products,
            FORWARD: RUNNING * through / products,
            LABELS: DRAWING * tokens * 4 * self.head / products,
            ROUND: sum(map(self._of_weight, self.blocks)) + BACKWARD * 2 * through / products,
            **{f"{ROUND} {w.role}": self._of_weight(w) for w in self.subject.source.spec.vocabulary},
            WRITE: (n_rivals + 1) * nbytes / DISK_NBYTES,
            COMPARE: START_SECONDS + (n_rivals + 2) * (load + COMPARING * held * whole / products),
            CHECK: START_SECONDS + 2 * (load + COMPARING * tokens * SHARES[1] * whole / products),
        }
        return {stage: seconds for stage, seconds in stages.items() if seconds > 0}

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
        work = SUMMING * (moments + scores + outputs) + FACTORING * factors
        return work / self.speed.products + (1 + short) * n * k * self.speed.rounding
