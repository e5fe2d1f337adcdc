"""How much memory this machine has (no torch)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container


def total_nbytes() -> int:
    """Memory of the machine, or of the container that this runs in. It does not depend on what else runs."""
    found = [int(psutil.virtual_memory().total)]
    for path in LIMITS:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(path.read_text(encoding="ascii")))
    return min(found)
