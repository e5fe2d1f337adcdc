"""How weights are measured and rounded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import Tensor

from bitwright.containers.base import Container
from bitwright.errors import fail
from bitwright.formats.base import SIXTEEN_BIT, Format
from bitwright.host.logic import logic_hash
from bitwright.measure.scores import FormatScore, WeightScores
from bitwright.models.spec import ModelSpec, Weight
from bitwright.plan import Rounding
from bitwright.rounding.base import Rounder


@dataclass(frozen=True)
class Method:
    """How weights are measured and rounded. Each default is the winner of an experiment in docs/LOG.md."""

    formats: dict[str, tuple[Format, ...]]  # of each weight, rounded with calibration
    stock: dict[str, Format]  # of each weight that the container's own quantizer can store: rounded to nearest
    rounders: tuple[Rounder, ...]
    importance: dict[str, Tensor] = field(default_factory=dict)  # mean squared inputs [K] that replace those of the text
    plain_share: float = 0.1  # of the unweighted second moment in the blend
    batch_tokens: int = 2048
    seed: int = 0

    @classmethod
    def of(
        cls, container: Container, spec: ModelSpec, wanted: Iterable[str], importance: dict[str, Tensor], seed: int
    ) -> Method:
        """The container's menu, or the formats ``wanted``, each where it can store the weight.

        Raises BitwrightError for a format that the container does not load.
        """
        names = tuple(wanted)
        if SIXTEEN_BIT.name in names:
            raise fail(
                "formats/unknown",
                f"--formats {SIXTEEN_BIT.name}",
                saw="16 bit is always an option and is not measured",
                wanted="quantized formats",
                help="leave it out",
            )
        menus = {}
        for weight in spec.weights:
            menu = [container.format(name) for name in names or container.menu(weight)]
            menus[weight.name] = tuple(format for format in menu if not container.accepts(weight, format))
        if not any(menus.values()):
            weight = spec.weights[0]
            reason = next((container.accepts(weight, f) for f in map(container.format, names or container.menu(weight))), None)
            raise fail(
                "formats/none-fits",
                f"{len(spec.weights)} weights",
                saw=f"no format can store any of them: {weight.name} [{weight.n_rows}, {weight.n_cols}]: {reason}",
                wanted="a model with weights that can be made smaller",
                help="another container or other --formats; a model as small as this fits as it is",
            )
        stock = {name: container.format(format) for name, format in container.stock(spec).items()}
        return cls(menus, stock, container.rounders, importance, seed=seed)

    def with_formats(self, container: Container, spec: ModelSpec, names: Iterable[str]) -> Method:
        """Also ``names``, for every weight that can be stored so; the same method where all are measured anyway."""
        extra = [container.format(name) for name in names if name != SIXTEEN_BIT.name]
        formats = {}
        for weight in spec.weights:
            known = self.formats[weight.name]
            formats[weight.name] = known + tuple(f for f in extra if f not in known and not container.accepts(weight, f))
        return replace(self, formats=formats)

    def stock_of(self, weight: Weight) -> tuple[Format, ...]:
        """The stock format, or nothing where it cannot store ``weight``."""
        return (self.stock[weight.name],) if weight.name in self.stock else ()

    def unmeasured(self, weight: Weight) -> WeightScores:
        """What will be found for ``weight``, with zeros for figures."""
        pairs = [(format.name, Rounding.NEAREST) for format in self.stock_of(weight)]
        pairs += [(format.name, Rounding.CALIBRATED) for format in self.formats[weight.name]]
        return WeightScores(weight.name, 0.0, tuple(FormatScore(*pair, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0) for pair in pairs))

    def key(self) -> dict[str, object]:
        """Everything that the results depend on, what rounds and scores among it."""
        numbers = (self.plain_share, self.batch_tokens, self.seed)
        formats = {name: [format.name for format in formats] for name, formats in self.formats.items()}
        stock = {name: format.name for name, format in self.stock.items()}
        digest = hashlib.sha256(b"".join(mean.numpy().tobytes() for mean in self.importance.values())).hexdigest()
        versions = {type(rounder).__name__: rounder.version for rounder in self.rounders}
        scores = logic_hash("bitwright.measure.scores", within="bitwright.measure")
        return {
            "formats": formats,
            "stock": stock,
            "numbers": numbers,
            "importance": digest if self.importance else None,
            "rounders": versions,
            "scores": scores,
        }
