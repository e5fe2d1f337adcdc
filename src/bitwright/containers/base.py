"""What a container promises: which formats its runtime loads, what each costs in its files, how it writes and reads them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from bitwright.containers.rivals import Rival, rivals
from bitwright.errors import fail
from bitwright.formats.base import SIXTEEN_BIT, Codes, Format, Packed
from bitwright.formats.families import unpacked
from bitwright.models.source import Source
from bitwright.models.spec import Kind, ModelSpec, Weight
from bitwright.plan import Choice, Plan, Rounding
from bitwright.rounding.base import Rounder
from bitwright.sensitivity import Group, Sensitivity

LEAST_NATS = 1e-12  # of which a share means nothing
PackedOf = Callable[[Weight, str, Rounding], Packed]  # (weight, format, rounding) -> its codes as measured


class Writer(ABC):
    """One checkpoint being written, parameter by parameter. A context: what is left is written at its end."""

    @property
    @abstractmethod
    def parameters(self) -> tuple[str, ...]:
        """The parameters that are asked for, in the order of the file."""

    @abstractmethod
    def put(self, parameter: str, value: Tensor | Packed) -> None:
        """Write the next of ``parameters``: its values as the source stores them, or its codes."""

    @abstractmethod
    def close(self) -> int:
        """Finish; returns the bytes of the checkpoint, counted as its plan does."""

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:  # noqa: B027
        """Let go of open files, finished or not."""


class Container(ABC):
    """One kind of checkpoint. Bytes are those of the files, but for text beside the weights."""

    name: ClassVar[str]
    rounders: ClassVar[tuple[Rounder, ...]]  # of the families that its runtime loads
    stock_name: ClassVar[str]  # what people get without us, the zero of "+10%"
    vocabulary: ClassVar[frozenset[Kind]] = frozenset()  # the ends of a model that it can store quantized
    suffix: ClassVar[str] = ""  # of a container that is one file; a directory has none
    runtime: ClassVar[str]  # a module of bitwright.runtimes
    library: ClassVar[str]  # as the hub calls it
    tags: ClassVar[tuple[str, ...]]  # for the hub
    serves: ClassVar[tuple[str, ...]] = ()  # engines that fuse the weights of ``groups``

    @property
    def formats(self) -> dict[str, Format]:
        """Everything that the runtime loads, by name."""
        return {SIXTEEN_BIT.name: SIXTEEN_BIT} | {f.name: f for rounder in self.rounders for f in rounder.formats.values()}

    def format(self, name: str) -> Format:
        """The format called ``name``; raises BitwrightError where the runtime does not load it."""
        if name not in self.formats:
            known = ", ".join(f for f in self.formats if f != SIXTEEN_BIT.name)
            raise fail(
                "formats/unknown",
                name,
                saw=f"{self.name} does not load it",
                wanted=f"one of {known}",
                help="leave --formats out",
            )
        return self.formats[name]

    def rounder(self, format: Format) -> Rounder:
        """What rounds into ``format``, which is not 16 bit."""
        return next(rounder for rounder in self.rounders if format.name in rounder.formats)

    def codes(self, packed: Packed) -> Codes:
        """``packed`` taken apart, to be decoded."""
        return unpacked(packed)

    @abstractmethod
    def usage(self, name: str, chat: bool, sees: bool = False) -> str:
        """How the checkpoint ``name`` is run, as Markdown for its card; ``chat``: whether the model has a chat template,
        ``sees``: whether it takes images."""

    @abstractmethod
    def loading(self, path: str, sees: bool = False) -> tuple[str, ...]:
        """Up to three lines that load the checkpoint at ``path``, for the end of a run."""

    def write_adapter(
        self, place: Path, source: Source, changes: Mapping[str, tuple[Tensor, Tensor]], alpha: float, name: str
    ) -> str:
        """Write an adapter for the checkpoint ``name`` as its own program loads it, and say how, as Markdown.

        ``changes``: of each weight A [R, K] and B [N, R], whose product is scaled by ``alpha`` / R. Nothing is written where
        that program loads what PEFT does.
        """
        return ""

    @abstractmethod
    def menu(self, weight: Weight) -> tuple[str, ...]:
        """Formats in which ``weight`` is measured unless the user asks for others."""

    def accepts(self, weight: Weight, format: Format) -> str | None:
        """Why ``weight`` cannot be stored in ``format``, or None."""
        return format.unavailable(weight.n_cols)

    def groups(self, spec: ModelSpec) -> tuple[Group, ...]:
        """Weights that the container's runtimes fuse, and what they must share for that."""
        return ()

    @abstractmethod
    def stock(self, spec: ModelSpec) -> dict[str, str]:
        """Weight -> format as the container's own quantizer chooses it; weights that it leaves alone are absent."""

    def sizes(self, source: Source) -> dict[str, int]:
        """Bytes of well-known recipes applied to this model, for ``--like``."""
        return {}

    @abstractmethod
    def nbytes(self, weight: Weight, format: Format, source: Source) -> int:
        """Bytes that ``weight`` of ``source`` takes in ``format``."""

    @abstractmethod
    def kept_nbytes(self, source: Source) -> int:
        """Bytes of everything that is not a weight."""

    def require(self, source: Source) -> None:  # noqa: B027
        """Raise BitwrightError when the runtime does not run this model."""

    def on_load(self, spec: ModelSpec, plan: Plan) -> dict[str, Any] | None:
        """The configuration with which the runtime makes ``plan`` (stock formats, 16 bit) from the source, or None."""
        return None

    def rivals(self, spec: ModelSpec, table: Sensitivity, plan: Plan, ablations: bool) -> list[Rival]:
        """What ``plan`` is measured against."""
        return rivals(table, plan, partial(self.on_load, spec), ablations, plan.fused_groups)

    def notes(self) -> tuple[str, ...]:
        """What a user should know about this run, such as a runtime that is missing."""
        return ()

    def plan_notes(self, spec: ModelSpec, plan: Plan) -> tuple[str, ...]:
        """What a user should know about this choice, such as a runtime that it harms."""
        if plan.fused_groups and plan.fused_cost_nats > 0:
            share = 100 * plan.fused_cost_nats / max(plan.damage_nats, LEAST_NATS)
            return (
                f"weights that are multiplied as one in {' and '.join(self.serves)} are kept alike, which is {share:.0f} % "
                "of the predicted damage; --no-fused-groups frees the choice and gives up those runtimes",
            )
        if not plan.broken_groups:
            return ()
        return (
            f"{len(plan.broken_groups)} fused modules mix what {' and '.join(self.serves)} needs alike, "
            f"{plan.broken_groups[0]} among them: do not serve this checkpoint there",
        )

    @abstractmethod
    def writer(self, out: Path, source: Source, plan: Plan) -> Writer:
        """Begin a checkpoint at ``out``, an existing empty directory or a new file."""

    @abstractmethod
    def read(self, out: Path, weights: Iterable[Weight]) -> dict[str, Packed]:
        """The codes of those of ``weights`` that the checkpoint ``out`` holds quantized, bit for bit as they were put."""

    def write(self, outputs: Mapping[Path, Plan], source: Source, packed_of: PackedOf) -> dict[Path, int]:
        """Write several plans of one model side by side, so that the source is read once; returns the bytes of each."""
        weights = {weight.name: weight for weight in source.spec.weights}
        with ExitStack() as stack:
            writers = [
                (stack.enter_context(self.writer(out, source, plan)), require_same_weights(plan, source.spec))
                for out, plan in outputs.items()
            ]
            for parameter in writers[0][0].parameters if writers else ():
                values: dict[tuple[str, Rounding], Tensor | Packed] = {}
                for writer, choices in writers:
                    choice = choices.get(parameter)
                    key = (choice.format, choice.rounding) if choice else (SIXTEEN_BIT.name, Rounding.NONE)
                    if key not in values:
                        plain = key[0] == SIXTEEN_BIT.name
                        values[key] = source.read(parameter) if plain else packed_of(weights[parameter], *key)
                    writer.put(parameter, values[key])
            return {out: writer.close() for out, (writer, _) in zip(outputs, writers, strict=True)}


def require_same_weights(plan: Plan, spec: ModelSpec) -> dict[str, Choice]:
    """Weight -> choice; raises BitwrightError unless ``plan`` names the weights of ``spec``, each of them."""
    choices = {choice.weight: choice for choice in plan.choices}
    odd = sorted({weight.name for weight in spec.weights} ^ set(choices))
    if odd:
        raise fail(
            "plan/weights",
            odd[0],
            saw="in the plan or in the model, but not in both",
            wanted="a plan made for this model",
            help="bitwright quantize makes one",
        )
    return choices
