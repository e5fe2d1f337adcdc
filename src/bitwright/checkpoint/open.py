"""From what the user typed to a checkpoint on disk: a directory, a .gguf file, a hub id, or ``demo``."""

from __future__ import annotations

import os
from pathlib import Path

from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.checkpoint.demo import demo_gguf
from bitwright.checkpoint.gguf import convert_gguf
from bitwright.errors import fail

WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md"]


def cache_dir() -> Path:
    """Where converted and downloaded models are kept: $BITWRIGHT_CACHE, or bitwright/ in the user's cache directory."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "bitwright"
    return Path(os.environ.get("BITWRIGHT_CACHE", default))


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open the 16-bit model ``source``. Raises BitwrightError when it is none of the four or is not sound."""
    return Checkpoint.of_directory(local_directory(source), str(source))


def local_directory(source: str | Path) -> Path:
    """The directory that holds ``source``, after a download or a conversion where it needs one."""
    text = str(source)
    path = Path(text).expanduser()
    if text == "demo":
        return convert_gguf(demo_gguf(cache_dir()), cache_dir())
    if path.is_dir():
        return path
    if path.suffix == ".gguf" and path.is_file():
        return convert_gguf(path, cache_dir())
    if path.exists() or text.count("/") != 1 or text.startswith(("/", ".", "~")):
        raise fail(
            "source/unknown", text, saw="a file that is not .gguf" if path.exists() else "no such directory or file",
            wanted="the source is a model directory, a .gguf file, a hub id (owner/name) or demo",
            help="bitwright quantize demo OUT",
        )  # fmt: skip
    return _from_hub(text)


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=WANTED_FILES))
    except Exception as error:  # the hub client raises many kinds; each means that the model did not arrive
        raise fail(
            "source/hub", repo, saw=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            wanted="the hub has this model and can be reached",
            help="check the name and the network, or name a local directory",
        ) from error  # fmt: skip
