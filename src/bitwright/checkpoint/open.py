"""From what the user typed to a checkpoint on disk: a directory, a .gguf file, a hub id, ``demo``, ``demo-vision``."""

from __future__ import annotations

import os
from pathlib import Path

from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.checkpoint.demo import demo_gguf
from bitwright.checkpoint.demo_vision import demo_vision
from bitwright.checkpoint.gguf import convert_gguf
from bitwright.checkpoint.hub import is_hub_id, whole_model
from bitwright.errors import fail
from bitwright.host.places import cache_dir


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open the 16-bit model ``source``. Raises BitwrightError when it is none of the four or is not sound."""
    return Checkpoint.of_directory(local_directory(source), str(source))


def local_directory(source: str | Path) -> Path:
    """The directory that holds ``source``, after a download or a conversion where it needs one."""
    text = str(source)
    path = Path(os.path.expanduser(text))
    if text == "demo":
        return convert_gguf(demo_gguf(cache_dir()), cache_dir())
    if text == "demo-vision":
        return demo_vision(local_directory("demo"), cache_dir())
    if os.path.isdir(path):  # false, and no exception, for a name longer than any file has
        return path
    if path.suffix == ".gguf" and os.path.isfile(path):
        return convert_gguf(path, cache_dir())
    if not is_hub_id(text):
        raise fail(
            "source/unknown",
            text[:200],
            saw="a file that is not .gguf" if os.path.exists(path) else "no such directory or file",
            wanted="the source is a model directory, a .gguf file, a hub id (owner/name), demo or demo-vision",
            help="bitwright quantize demo OUT",
        )
    return whole_model(text)
