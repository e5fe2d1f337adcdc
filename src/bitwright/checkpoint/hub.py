"""What is fetched from the model hub: a whole model, its texts alone, or the headers of its weights (no torch)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from bitwright.checkpoint.headers import TensorRef
from bitwright.errors import BitwrightError, fail

TEXTS = ["*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md"]
WEIGHTS = ["*.safetensors"]

P = ParamSpec("P")
T = TypeVar("T")


def is_hub_id(text: str) -> bool:
    """Whether ``text`` can be OWNER/NAME on the hub: no path of this machine, and no path by its looks."""
    return text.count("/") == 1 and not text.startswith(("/", ".", "~")) and not Path(text).exists()


def _reached(fetch: Callable[P, T]) -> Callable[P, T]:
    """``fetch``, whose first argument is a hub id, with the hub client's many errors told as one."""

    @wraps(fetch)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return fetch(*args, **kwargs)
        except BitwrightError:
            raise
        except Exception as error:  # the hub client raises many kinds; each means that nothing arrived
            words = str(error).strip().splitlines()
            raise fail(
                "source/hub",
                str(args[0]),
                saw=f"{type(error).__name__}: {words[0] if words else ''}",
                wanted="the hub has this model and can be reached",
                help="check the name and the network, or name a local directory",
            ) from error

    return told


@_reached
def whole_model(repo: str) -> Path:
    """Texts and weights, in the hub client's cache."""
    return _snapshot(repo, WEIGHTS + TEXTS)


@_reached
def texts(repo: str) -> Path:
    """Everything but weights, in the hub client's cache."""
    return _snapshot(repo, TEXTS)


def _snapshot(repo: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, allow_patterns=patterns))


@_reached
def one_file(repo: str, name: str) -> Path:
    """The file ``name`` alone, in the hub client's cache."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, name))


@_reached
def file_names(repo: str) -> list[str]:
    """Names of all files."""
    from huggingface_hub import HfApi

    return [sibling.rfilename for sibling in HfApi(library_name="bitwright").model_info(repo).siblings or ()]


@_reached
def headers(repo: str) -> dict[str, TensorRef] | None:
    """Every tensor by the headers of its shards, for which a part of each file is requested and no weight is read.

    None where the model has no weights in safetensors. ``start`` counts from the end of a shard's header.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError

    try:
        shards = HfApi(library_name="bitwright").get_safetensors_metadata(repo).files_metadata
    except NotASafetensorsRepoError:
        return None
    refs = {}
    for shard, metadata in shards.items():
        for name, tensor in metadata.tensors.items():
            begin, end = tensor.data_offsets
            refs[name] = TensorRef(name, tensor.dtype, tuple(tensor.shape), Path(shard), begin, end - begin)
    return refs
