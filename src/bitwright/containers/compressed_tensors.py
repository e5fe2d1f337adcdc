"""compressed-tensors: the checkpoints that vLLM, SGLang and transformers read alike.

Layout per quantized linear (library 0.20, format pack-quantized): ``weight_packed`` int32 [N, ceil(K bits / 32)], a
little-endian stream of integer + 2^(bits - 1) along each row; ``weight_scale`` [N, K / group_size]; ``weight_shape`` int64 [2].
config.json names the modules of each format. Symmetric formats alone: transformers' default path does not load the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from bitwright.checkpoint.headers import TensorRef
from bitwright.checkpoint.writer import TensorPlan
from bitwright.containers.directory import DirectoryContainer, left_in_16bit, tensors_of
from bitwright.formats.base import SIXTEEN_BIT, Format, Packed
from bitwright.formats.group.format import GROUP_FORMATS, GroupFormat
from bitwright.host.packages import require_package
from bitwright.models.fused import fused_modules
from bitwright.models.source import Source
from bitwright.models.spec import Kind, ModelSpec, Weight
from bitwright.plan import Plan
from bitwright.rounding.base import Rounder
from bitwright.rounding.group import GROUP
from bitwright.sensitivity import Group, Shares

FORMAT = "pack-quantized"
STOCK_SIZES = (128, 64, 32)  # of groups: the usual one, and those for rows that it does not divide
MARLIN_BITS = (4, 8)  # widths that vLLM's own CUDA kernels multiply


class CompressedTensors(DirectoryContainer):
    """Symmetric integers of 2 to 8 bits in groups, mixed by module."""

    name = "compressed-tensors"
    rounders: ClassVar[tuple[Rounder, ...]] = (GROUP,)
    stock_name = "W4A16, to nearest"
    packages = "compressed-tensors"
    tags = ("compressed-tensors", "4-bit", "vllm")
    serves = ("vLLM", "SGLang")
    vocabulary: ClassVar[frozenset[Kind]] = frozenset({Kind.HEAD})

    def menu(self, weight: Weight) -> tuple[str, ...]:
        wide = next((size for size in STOCK_SIZES if weight.n_cols % size == 0), STOCK_SIZES[-1])
        if weight.kind is Kind.HEAD:
            return (f"w8-g{wide}",)
        return ("w4-g32", "w4-g64", "w4-g128", f"w8-g{wide}")

    def accepts(self, weight: Weight, format: Format) -> str | None:
        if weight.view.transposed and format is not SIXTEEN_BIT:
            return "a Conv1D, which the library does not compress"
        return format.unavailable(weight.n_cols)

    def groups(self, spec: ModelSpec) -> tuple[Group, ...]:
        """The format of the first weight of a fused module is taken for all of it."""
        fused = fused_modules(weight.module for weight in spec.weights)
        return tuple(Group(name, tuple(f"{p}.weight" for p in parts), Shares.FORMAT) for name, parts in fused.items())

    def stock(self, spec: ModelSpec) -> dict[str, str]:
        found = {}
        for weight in spec.weights:
            formats = [GROUP_FORMATS[f"w4-g{size}"] for size in STOCK_SIZES]
            fitting = [format.name for format in formats if not self.accepts(weight, format)]
            if fitting and weight.kind is Kind.LINEAR:
                found[weight.name] = fitting[0]
        return found

    def require(self, source: Source) -> None:
        purpose = "transformers reads the written file with it"
        require_package("container/package", f"--container {self.name}", "compressed_tensors", purpose)

    def usage(self, name: str, chat: bool, sees: bool = False) -> str:
        return f"""With vLLM: `vllm serve {name}`. With transformers:

{super().usage(name, chat, sees)}"""

    def plan_notes(self, spec: ModelSpec, plan: Plan) -> tuple[str, ...]:
        rare = sorted({f for f in plan.formats if f in GROUP_FORMATS and GROUP_FORMATS[f].bits not in MARLIN_BITS})
        note = f"{', '.join(rare)}: vLLM multiplies these only on CUDA and with the package humming-kernels; transformers does"
        return super().plan_notes(spec, plan) + ((note,) if rare else ())

    def quantization_config(self, source: Source, plan: Plan) -> dict[str, Any]:
        targets = defaultdict(list)
        for choice in plan.choices:
            if choice.format != SIXTEEN_BIT.name:
                targets[choice.format].append(choice.weight.removesuffix(".weight"))
        return {
            "quant_method": self.name,
            "format": FORMAT,
            "quantization_status": "compressed",
            "ignore": left_in_16bit(source.spec, plan),
            "config_groups": {
                f"group_{i}": _scheme(GROUP_FORMATS[name], targets[name]) for i, name in enumerate(sorted(targets))
            },
        }

    def layout(self, weight: Weight, format: GroupFormat, source: Source) -> list[TensorPlan]:
        packed = (weight.n_rows, -(-weight.n_cols * format.bits // 32))
        scale = (weight.n_rows, weight.n_cols // format.group_size)
        return [
            TensorPlan(f"{weight.tensor}_packed", "I32", packed),
            TensorPlan(f"{weight.tensor}_scale", "BF16", scale),
            TensorPlan(f"{weight.tensor}_shape", "I64", (2,)),
        ]

    def stored(self, weight: Weight, packed: Packed, source: Source) -> dict[str, Tensor]:
        return {
            f"{weight.tensor}_packed": packed.tensors["packed"],
            f"{weight.tensor}_scale": packed.tensors["scale"],
            f"{weight.tensor}_shape": torch.tensor(packed.shape),
        }

    def taken(self, weight: Weight, refs: Mapping[str, TensorRef], config: Any) -> Packed | None:
        groups = config["config_groups"].values()
        scheme = next((group["weights"] for group in groups if weight.module in group["targets"]), None)
        if scheme is None:
            return None
        format = GROUP_FORMATS[f"w{scheme['num_bits']}-g{scheme['group_size']}"]
        names = {"packed": f"{weight.tensor}_packed", "scale": f"{weight.tensor}_scale"}
        return Packed(format, (weight.n_rows, weight.n_cols), tensors_of(refs, names))


COMPRESSED_TENSORS = CompressedTensors()


def _scheme(format: GroupFormat, targets: list[str]) -> dict[str, Any]:
    """How ``targets`` are stored, in the library's words."""
    weights = {"num_bits": format.bits, "type": "int", "symmetric": True, "strategy": "group"}
    return {
        "targets": targets,
        "weights": {**weights, "group_size": format.group_size, "dynamic": False},
        "input_activations": None,
        "output_activations": None,
        "format": FORMAT,
    }
