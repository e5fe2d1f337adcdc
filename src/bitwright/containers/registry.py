"""The containers by name (no torch until one is used). A new one is a module, and a line here."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.errors import fail

if TYPE_CHECKING:
    from bitwright.containers.base import Container

CONTAINERS = {
    "bitsandbytes": "bitwright.containers.bitsandbytes:BITSANDBYTES",
    "compressed-tensors": "bitwright.containers.compressed_tensors:COMPRESSED_TENSORS",
    "gguf": "bitwright.containers.gguf.container:GGUF",
}
DEFAULT = "bitsandbytes"


def container_of(name: str) -> Container:
    """The container called ``name``; raises BitwrightError for an unknown one."""
    if name not in CONTAINERS:
        raise fail(
            "container/unknown",
            "--container",
            saw=name,
            wanted=f"one of {', '.join(CONTAINERS)}",
            help=f"--container {DEFAULT}",
        )
    module, _, attribute = CONTAINERS[name].partition(":")
    found: Container = getattr(import_module(module), attribute)
    return found


def container_for(out: Path) -> Container:
    """The container that a path called ``out`` asks for by its suffix."""
    containers = [container_of(name) for name in CONTAINERS]
    return next((c for c in containers if c.suffix and c.suffix == out.suffix), container_of(DEFAULT))


def require_suffix(out: Path, container: Container) -> None:
    """Raise BitwrightError unless the name of ``out`` ends as the container asks, or for a directory as that of no other."""
    asked = container_for(out).suffix
    if asked != container.suffix:
        raise fail(
            "output/suffix",
            out,
            saw=f"a name that ends in {out.suffix!r}" if out.suffix else "a name without a suffix",
            wanted=f"OUT ends in {container.suffix}" if container.suffix else f"OUT is a directory for {container.name}",
            help=f"bitwright quantize SOURCE {out.with_suffix(container.suffix)}",
        )
