"""What is known of a model before it is loaded: a directory, a config.json, a .gguf file or a hub id (no torch)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from bitwright.checkpoint import hub
from bitwright.checkpoint.demo import demo_gguf
from bitwright.checkpoint.gguf_header import read_gguf_header
from bitwright.checkpoint.headers import INDEX_NAME, PLAIN_BYTES, SINGLE_NAME, TensorRef, read_headers
from bitwright.errors import BitwrightError, fail
from bitwright.estimate.families import parts, parts_of_headers
from bitwright.estimate.gguf_settings import gguf_config
from bitwright.estimate.parts import Part
from bitwright.host.places import cache_dir
from bitwright.host.texts import UnreadableError, read_object
from bitwright.models.settings import Config, text_config
from bitwright.plan import Plan

TOWERS = ("visual", "vision_tower", "vision_model")  # in names of weights that are no blocks of the text
FLOATS = ("F64", "F32", "F16", "BF16")  # of weights; indices and masks are none


@dataclass(frozen=True)
class Stored:
    """Weights as they lie there."""

    format: str
    nbytes: int  # of all tensors


@dataclass(frozen=True)
class Source:
    """A model's configuration and tensors."""

    config: Config
    parts: tuple[Part, ...]
    stored: Stored | None = None  # None: only the configuration is known
    notes: tuple[str, ...] = ()


def read_source(model: str) -> Source:
    """Configuration and tensor headers of ``model``; of a hub id nothing else is fetched.

    A family with a row is counted as transformers builds it, any other from its headers. Raises BitwrightError where
    neither is possible.
    """
    path = demo_gguf(cache_dir()) if model == "demo" else Path(os.path.expanduser(model))
    if path.suffix == ".gguf" and path.is_file():
        return _of_gguf(path)
    if hub.is_hub_id(model):
        return _of_headers(_json(hub.one_file(model, "config.json"), model), hub.headers(model))
    held = path.is_dir() and any((path / name).exists() for name in (SINGLE_NAME, INDEX_NAME))
    config = _json(path / "config.json" if path.is_dir() else path, model)
    return _of_headers(config, read_headers(path) if held else None)


def require_same_model(plan: Plan, source: Source, path: Path) -> None:
    """Raise BitwrightError where ``plan``, read from ``path``, is of a model with another number of blocks, or of one that has
    more bytes than this one could take."""
    text, most = text_config(source.config), 4 * sum(part.n_parameters for part in source.parts)
    wanted = next((text[name] for name in ("num_hidden_layers", "n_layer") if name in text), None)
    names = [choice.weight.split(".") for choice in plan.choices if not set(choice.weight.split(".")) & set(TOWERS)]
    found = len({next(part for part in name if part.isdigit()) for name in names if any(map(str.isdigit, name))})
    if plan.nbytes <= most and (wanted is None or found in (0, wanted)):
        return
    raise fail(
        "estimate/plan",
        path,
        saw=f"a plan for {plan.source}: {found} blocks, {plan.nbytes / 1e9:.2f} GB",
        wanted=f"a plan for this model: {wanted or 'as many'} blocks, at most {most / 1e9:.2f} GB",
        help="bitwright allocate sensitivity.json -o plan.json, with the table of this model",
    )


def _of_headers(config: Config, refs: dict[str, TensorRef] | None) -> Source:
    if refs is None:
        return Source(config, parts(config))
    stored = Stored(_formats((ref.dtype, ref.nbytes) for ref in refs.values()), sum(ref.nbytes for ref in refs.values()))
    plain = not isinstance(config.get("quantization_config"), dict) and all(ref.dtype in PLAIN_BYTES for ref in refs.values())
    try:
        counted = parts(config)
    except BitwrightError as error:
        if not plain or error.finding.rule not in ("estimate/family", "estimate/vision"):
            raise
        text = text_config(config)
        shapes = {name: ref.shape for name, ref in refs.items()}
        return Source(config, parts_of_headers(shapes, text.get("num_experts_per_tok")), stored)
    held = sum(prod(ref.shape) for ref in refs.values() if ref.dtype in FLOATS) if plain else None
    return Source(config, counted, stored, tuple(_difference(counted, held)))


def _difference(counted: tuple[Part, ...], held: int | None) -> Iterable[str]:
    more = 0 if held is None else held - sum(part.n_parameters for part in counted)
    if more:
        words = f"{abs(more) / 1e6:,.2f} million numbers {'more' if more > 0 else 'fewer'}"
        yield f"the file holds {words} than transformers builds from this configuration"


def _of_gguf(path: Path) -> Source:
    header = read_gguf_header(path)
    config = gguf_config(header)
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    tensors = header.tensors.values()
    stored = Stored(_formats((tensor.type.upper(), tensor.nbytes) for tensor in tensors), sum(t.nbytes for t in tensors))
    return Source(config, parts_of_headers(shapes, text_config(config).get("num_experts_per_tok")), stored)


def _formats(tensors: Iterable[tuple[str, int]]) -> str:
    """The formats that take most of the bytes, the largest first."""
    sizes: Counter[str] = Counter()
    for name, nbytes in tensors:
        sizes[name] += nbytes
    total = sum(sizes.values())
    large = [name for name, nbytes in sizes.most_common(3) if nbytes > total / 20]
    return " + ".join(large) or "empty"


def _json(path: Path, model: str) -> dict[str, Any]:
    try:
        return read_object(path)
    except UnreadableError as error:
        raise _no_config(model, str(error)) from None


def _no_config(model: str, saw: str) -> BitwrightError:
    return fail(
        "estimate/config",
        model,
        saw=saw,
        wanted="a model directory, a config.json, a .gguf file or a hub id",
        help="bitwright estimate DIRECTORY",
    )
