"""A terminal of 80 columns that a test types into: tmux with a plain shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from uuid import uuid4

TMUX = shutil.which("tmux")
NOISE = ("Warning", "warning:", "it/s]", "fatal:", "Traceback", "kernels-community", "deprecated", "HF_TOKEN", "<frozen")


class Terminal:
    """One shell in ``folder``. ``paths`` go to the front of PATH; of the environment only what is named here is passed on."""

    def __init__(self, folder: Path, paths: tuple[str, ...] = (), columns: int = 80, **environment: str) -> None:
        self.name, self.columns = f"bitwright-{uuid4().hex[:8]}", columns
        self._status = folder / f".{self.name}"
        (folder / ".tmux.conf").write_text("set -g history-limit 20000\nset -g status off\n")
        search = os.pathsep.join((*paths, os.environ["PATH"]))
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        given = kept | {"PATH": search, "TERM": "screen", "PS1": "$ ", "LC_ALL": "C.UTF-8"} | environment
        given["PROMPT_COMMAND"] = f"echo $? >> {self._status}"
        shell = ["env", "-i", *(f"{name}={value}" for name, value in given.items()), "bash", "--norc", "--noprofile"]
        window = ("new-session", "-d", "-x", str(columns), "-y", "40", "-c", str(folder))
        self._tmux("-f", str(folder / ".tmux.conf"), *window, *shell)
        self._wait(1, 30)
        self._count = 1

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tmux("kill-server")
        self._status.unlink(missing_ok=True)

    def run(self, command: str, seconds: float = 300) -> int:
        """Type ``command``, wait for its end; its exit code."""
        self.begin(command)
        return self.end(seconds)

    def begin(self, command: str) -> None:
        """Type ``command`` and do not wait."""
        self._tmux("send-keys", "-l", command)
        self._tmux("send-keys", "Enter")

    def end(self, seconds: float = 300) -> int:
        """Wait until the command has ended; its exit code."""
        self._count += 1
        return int(self._wait(self._count, seconds))

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._tmux("send-keys", "C-c")

    def wait_for(self, words: str, seconds: float = 300) -> None:
        """Wait until ``words`` stand on the screen."""
        self._until(lambda: words in self.text(), words, seconds)

    def text(self) -> str:
        """Everything that was shown and has stayed."""
        lines = self._tmux("capture-pane", "-p", "-S", "-").rstrip().splitlines()
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def _wait(self, count: int, seconds: float) -> str:
        self._until(lambda: len(self._codes()) >= count, f"the end of command {count - 1}", seconds)
        return self._codes()[count - 1]

    def _codes(self) -> list[str]:
        return self._status.read_text().split() if self._status.exists() else []

    def _until(self, ready: Callable[[], bool], what: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                raise TimeoutError(f"{what} did not come in {seconds} s:\n{self.text()}")
            time.sleep(0.1)

    def _tmux(self, *words: str) -> str:
        assert TMUX is not None
        return subprocess.run([TMUX, "-L", self.name, *words], capture_output=True, text=True, check=True).stdout
