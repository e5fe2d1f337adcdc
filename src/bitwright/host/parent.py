"""Worker processes that end with the one that started them, however that ends (no torch)."""

from __future__ import annotations

import os
import threading
import time

EVERY = 0.5  # seconds between two looks


def end_with_parent() -> None:
    """From now on this process ends soon after its parent has ended, killed or not."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVERY)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
