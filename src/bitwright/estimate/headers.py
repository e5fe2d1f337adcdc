"""Parts and bytes of weights that are there, from their headers alone (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

from bitwright.checkpoint.gguf_header import GgufHeader
from bitwright.checkpoint.headers import PLAIN_BYTES, TensorRef
from bitwright.errors import BitwrightError, fail
from bitwright.estimate.families import parts, parts_of_headers
from bitwright.estimate.parts import Part
from bitwright.estimate.stated import stated_format
from bitwright.models.settings import Config, text_config

FLOATS = ("F64", "F32", "F16", "BF16")  # of weights; indices and masks are none
EIGHT_BIT_FLOATS = ("F8_E4M3", "F8_E5M2", "F8_E8M0")
SCALES = ("scale", "scale_inv", "scale_2")  # how names of tensors end that are no weights
SIXTEEN_BIT_TYPES = ("f32", "f16", "bf16")  # in GGUF files


@dataclass(frozen=True)
class Stored:
    """Weights as they lie there."""

    format: str
    nbytes: int  # of all tensors
    quantized: bool = False


@dataclass(frozen=True)
class Found:
    """What headers tell. ``notes``: where they and the configuration differ."""

    parts: tuple[Part, ...]
    stored: Stored
    notes: tuple[str, ...] = ()


def of_safetensors(config: Config, refs: dict[str, TensorRef]) -> Found:
    """A family with a row is counted as transformers builds it, any other from its tensors.

    Raises BitwrightError for another family whose weights are packed, several numbers into one.
    """
    stated = stated_format(config)
    held = [(ref.dtype, ref.nbytes) for ref in refs.values()]
    quantized = stated is not None or any(ref.dtype not in PLAIN_BYTES for ref in refs.values())
    stored = Stored(stated or _types(held), sum(nbytes for _, nbytes in held), quantized)
    weights = _unpacked(refs, stated)
    try:
        counted = parts(config)
    except BitwrightError as error:
        if error.finding.rule not in ("estimate/family", "estimate/vision"):
            raise
        if weights is None:
            raise _packed(config, stored) from None
        shapes = {name: ref.shape for name, ref in weights.items()}
        return Found(parts_of_headers(shapes, text_config(config).get("num_experts_per_tok")), stored)
    return Found(counted, stored, tuple(_difference(counted, weights)))


def of_gguf(config: Config, header: GgufHeader) -> Found:
    """The tensors of a GGUF file, which all have their shapes."""
    tensors = header.tensors.values()
    held = [(tensor.type.upper(), tensor.nbytes) for tensor in tensors]
    quantized = any(tensor.type not in SIXTEEN_BIT_TYPES for tensor in tensors)
    stored = Stored(_types(held), sum(nbytes for _, nbytes in held), quantized)
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    return Found(parts_of_headers(shapes, text_config(config).get("num_experts_per_tok")), stored)


def _unpacked(refs: dict[str, TensorRef], stated: str | None) -> dict[str, TensorRef] | None:
    """The tensors without scales, where each holds the numbers of one matrix or vector; None where some are packed.

    Floats of 8 bit keep the shape of their matrix; codes of fewer bits share integers.
    """
    types = {ref.dtype for ref in refs.values()}
    if stated is None and types <= set(PLAIN_BYTES):
        return refs
    if types & set(EIGHT_BIT_FLOATS) and types <= {*FLOATS, *EIGHT_BIT_FLOATS}:
        return {name: ref for name, ref in refs.items() if not name.endswith(SCALES)}
    return None


def _packed(config: Config, stored: Stored) -> BitwrightError:
    return fail(
        "estimate/family",
        "config.json",
        saw=f"model_type {config.get('model_type')}, whose weights are packed ({stored.format}, {stored.nbytes / 1e9:.2f} GB)",
        wanted="a family that is known here, or tensors that have the shapes of the matrices",
        help="name the 16-bit model that it was quantized from",
    )


def _difference(counted: tuple[Part, ...], weights: dict[str, TensorRef] | None) -> Iterator[str]:
    if weights is None:
        return
    held = sum(prod(ref.shape) for ref in weights.values() if ref.dtype in (*FLOATS, *EIGHT_BIT_FLOATS))
    if more := held - sum(part.n_parameters for part in counted):
        words = f"{abs(more) / 1e6:,.2f} million numbers {'more' if more > 0 else 'fewer'}"
        yield f"the file holds {words} than transformers builds from this configuration"


def _types(tensors: Iterable[tuple[str, int]]) -> str:
    """The types that take most of the bytes, the largest first."""
    sizes: Counter[str] = Counter()
    for name, nbytes in tensors:
        sizes[name] += nbytes
    total = sum(sizes.values())
    large = [name for name, nbytes in sizes.most_common(3) if nbytes > total / 20]
    return " + ".join(large) or "empty"
