"""What is known of a model before it is loaded: a directory, a config.json, a .gguf file or a hub id (no torch)."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from bitwright.checkpoint import hub
from bitwright.checkpoint.demo import demo_gguf
from bitwright.checkpoint.gguf_header import read_gguf_header, require_whole
from bitwright.checkpoint.headers import INDEX_NAME, SINGLE_NAME, TensorRef, read_headers
from bitwright.errors import BitwrightError, fail
from bitwright.estimate.families import FAMILIES, parts
from bitwright.estimate.gguf_settings import gguf_config
from bitwright.estimate.headers import Stored, of_gguf, of_safetensors
from bitwright.estimate.parts import Part
from bitwright.estimate.stated import stated_format
from bitwright.host.places import cache_dir
from bitwright.host.texts import UnreadableError, read_object
from bitwright.models.settings import Config, text_config
from bitwright.plan import Plan

TOWERS = ("visual", "vision_tower", "vision_model")  # in names of weights that are no blocks of the text
FROM_GGUF = ("gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3")  # that transformers reads, and quantize
LONGEST_STEM = 100  # characters of a model's name that go into that of OUT
SKETCHED = "a sketch has no weights"


@dataclass(frozen=True)
class Source:
    """A model's configuration and tensors."""

    config: Config
    parts: tuple[Part, ...]
    stored: Stored | None = None  # None: only the configuration is known
    notes: tuple[str, ...] = ()
    model: str = ""  # as it was named
    out: str = ""  # a name that is free for what will be made of it
    obstacle: str = SKETCHED  # why quantize does not take it; empty where it does


def read_source(model: str) -> Source:
    """Configuration and tensor headers of ``model``; of a hub id nothing else is fetched.

    A family with a row is counted as transformers builds it, any other from its headers. Raises BitwrightError where
    neither is possible.
    """
    return replace(_read(model), model=model, out=free_name(model))


def _read(model: str) -> Source:
    path = demo_gguf(cache_dir()) if model == "demo" else Path(os.path.expanduser(model))
    if path.suffix == ".gguf" and path.is_file():
        return _of_gguf(path)
    if hub.is_hub_id(model):
        config, refs = _json(hub.one_file(model, "config.json"), model), hub.headers(model)
        return _of_configuration(config, "it has no safetensors files") if refs is None else _of_tensors(config, refs)
    config = _json(path / "config.json" if path.is_dir() else path, model)
    if path.is_dir() and any((path / name).exists() for name in (SINGLE_NAME, INDEX_NAME)):
        return _of_tensors(config, read_headers(path))
    return _of_configuration(config, "only its configuration is here, and no weights")


def _of_configuration(config: Config, unheld: str) -> Source:
    """``unheld``: why there are no tensors."""
    stated = stated_format(config)
    row = f"as it is: {stated}" if stated else "as it is"
    return Source(config, parts(config), notes=(f"no row {row!r}: {unheld}",), obstacle=unheld)


def _of_tensors(config: Config, refs: dict[str, TensorRef]) -> Source:
    found, obstacle = of_safetensors(config, refs), ""
    notes: tuple[str, ...] = ()
    kind = text_config(config)["model_type"]
    if found.stored.quantized:
        obstacle = f"it is quantized already ({found.stored.format})"
    elif kind not in FAMILIES and "auto_map" in config:
        obstacle = "it is built by code that it brings along"
    elif kind not in FAMILIES:
        notes = (f"the family {kind} has no row here; bitwright quantize --dry-run tells whether it takes it",)
    return Source(config, found.parts, found.stored, found.notes + notes, obstacle=obstacle)


def _of_gguf(path: Path) -> Source:
    header = read_gguf_header(path)
    require_whole(header, path)
    config = gguf_config(header)
    found = of_gguf(config, header)
    kind = config["model_type"]
    obstacle = "" if kind in FROM_GGUF else f"quantize reads no GGUF files of the family {kind}"
    return Source(config, found.parts, found.stored, found.notes, obstacle=obstacle)


def free_name(model: str) -> str:
    """A name like that of ``model``, under which nothing lies in this folder, be it a directory or a .gguf file."""
    stem = Path(os.path.abspath(os.path.expanduser(model))).name.removesuffix(".gguf")[:LONGEST_STEM] or "model"
    names = (f"{stem}-out" if number == 1 else f"{stem}-out-{number}" for number in count(1))
    return next(name for name in names if not any(map(os.path.lexists, (name, f"{name}.gguf"))))


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
