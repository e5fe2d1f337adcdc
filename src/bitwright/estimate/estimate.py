"""Will it fit: bytes on disk and in memory of a model that need not be here, format by format (no torch)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.checkpoint.headers import read_headers
from bitwright.errors import fail
from bitwright.estimate.cache import cache_nbytes, longest_context
from bitwright.estimate.shapes import FAMILIES, Part, parts, parts_of_headers, text_config
from bitwright.estimate.storage import SIXTEEN, stored_nbytes

CHUNK_TOKENS = 512  # of a prompt that are worked on at once


@dataclass(frozen=True)
class Line:
    """One format. Memory is what is stored, the cache of the context, and workspace."""

    format: str
    disk_nbytes: int
    cache_nbytes: int
    workspace_nbytes: int
    longest_context: int | None  # tokens, where a memory was named
    fits: bool | None

    @property
    def memory_nbytes(self) -> int:
        return self.disk_nbytes + self.cache_nbytes + self.workspace_nbytes


@dataclass(frozen=True)
class Estimate:
    """All formats of one model at one context."""

    n_parameters: int
    n_active: int  # that take part in one token
    context: int
    batch: int
    lines: tuple[Line, ...]

    @property
    def best(self) -> Line | None:
        """The line that fits with the most bytes a weight, 16 bit at most."""
        usable = [line for line in self.lines if line.fits and line.disk_nbytes <= self._sixteen.disk_nbytes]
        return max(usable, key=lambda line: line.disk_nbytes, default=None)

    @property
    def _sixteen(self) -> Line:
        return next(line for line in self.lines if line.format == SIXTEEN)


def estimate(
    config: dict[str, Any], *, memory: int | None = None, context: int = 4096, batch: int = 1, cache_bits: float = 16,
    plans: dict[str, int] | None = None, found: tuple[Part, ...] | None = None,
) -> Estimate:  # fmt: skip
    """Count the model that ``config`` describes. Raises BitwrightError for a family without a row.

    ``memory``: bytes of the device, for what fits and the longest context that does. ``plans``: further lines, by the bytes
    of their tensors. ``found``: the parts, where they are known from a checkpoint.
    """
    text, found = text_config(config), found or parts(config)
    cache, workspace = cache_nbytes(config, context, batch, cache_bits), workspace_nbytes(text, batch)
    lines = []
    for name, nbytes in (stored_nbytes(found, text) | (plans or {})).items():
        room = None if memory is None else memory - nbytes - workspace
        longest = None if room is None else longest_context(config, max(0, room), batch, cache_bits) if room > 0 else 0
        lines.append(Line(name, nbytes, cache, workspace, longest, None if room is None else room >= cache))
    return Estimate(
        sum(part.n_parameters for part in found), sum(part.n_active for part in found), context, batch, tuple(lines)
    )


def workspace_nbytes(text: dict[str, Any], batch: int) -> int:
    """What one forward pass needs beside weights and cache: activations of one chunk in 16 bit, logits in 32.

    Of a token the residual stream, its norm, queries, keys and values, and both inner vectors of the feed-forward layer are
    alive at once. Runtimes' own overhead (about half a gigabyte of CUDA context) is not in it.
    """
    hidden, inner = int(text["hidden_size"]), int(text.get("intermediate_size") or 0)
    return 2 * batch * CHUNK_TOKENS * (6 * hidden + 3 * inner) + 4 * batch * int(text["vocab_size"])


def read_config(model: str) -> dict[str, Any]:
    """The configuration of a directory, of a config.json, or of a hub id, of which nothing else is fetched."""
    path = Path(model).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file() and model.count("/") == 1 and not model.startswith((".", "/", "~")):
        path = _from_hub(model)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _no_config(model, type(error).__name__) from None
    if not isinstance(config, dict):
        raise _no_config(model, type(config).__name__)
    return config


def parts_of(model: str, config: dict[str, Any]) -> tuple[Part, ...]:
    """The parts of a known family by its row, of any other by the tensor headers of the directory ``model``."""
    directory = Path(model).expanduser()
    if str(text_config(config).get("model_type")) not in FAMILIES and directory.is_dir():
        return parts_of_headers({name: ref.shape for name, ref in read_headers(directory).items()})
    return parts(config)


def _no_config(model: str, saw: str) -> Exception:
    return fail(
        "estimate/config",
        model,
        saw=saw,
        wanted="a model directory, a config.json or a hub id",
        help="bitwright estimate DIRECTORY",
    )


def _from_hub(repo: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, "config.json"))
    except Exception as error:  # the hub client raises many kinds; each means that the file did not arrive
        raise fail(
            "estimate/hub", repo, saw=type(error).__name__, wanted="the hub has this model and can be reached",
            help="check the name and the network, or name a local config.json",
        ) from error  # fmt: skip
