"""Processes of tests, forked from one that has imported the libraries: imports take longer than most of their jobs.

A child has imported and done nothing else, as a process of its own. That goes for workers, for commands, and for the workers of
commands. What tests of the terminal start, and the tests of workers that fail (evaluate/test_process.py), are real processes.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from bitwright.evaluate import process
from bitwright.host.progress import Advance, Reporter, relayed
from bitwright.host.quiet import QUIET

REAL = process._run
IMPORTED = ("bitwright.evaluate.worker", "bitwright.pipeline", "bitsandbytes", "transformers.models.llama.modeling_llama")
LATER = {"bitwright.evaluate.tasks_worker": "lm_eval.models.huggingface"}  # what a worker imports at its work
OF_IMPORTS = ("HF_", "TRANSFORMERS_", "OMP_", "XDG_", "PYTHON", "BITWRIGHT_")  # variables that imports read
MOST_BYTES = 1 << 20
SECONDS = 120  # for the imports


class Nursery:
    """The process that forks, at the socket ``place``; started with the first job that it is given."""

    def __init__(self, place: Path | None = None) -> None:
        self.own = None if place else tempfile.TemporaryDirectory()
        self.place = place or Path(self.own.name) / "nursery"  # type: ignore[union-attr]
        self.environment = _of_imports()
        self.started = bool(place)  # by the process that this one was forked for
        self.kept: subprocess.Popen[bytes] | None = None

    def run(self, command: list[str], errors: Path, reporter: Reporter, advance: Advance) -> int:
        """As bitwright.evaluate.process runs a command."""
        if self.own and self.environment != _of_imports():  # a command changes it, for libraries that it has already
            return REAL(command, errors, reporter, advance)
        read, write = os.pipe()
        child = Child(self._connected(), command[3:], Path.cwd(), [write, write], {**os.environ, **QUIET})
        os.close(write)
        try:
            with open(errors, "w", encoding="utf-8") as log, open(read, encoding="utf-8", errors="replace") as output:
                for line in relayed(output, advance, reporter.say):
                    log.write(line)
                    if reporter.verbose:
                        reporter.say(line.rstrip("\n"))
            return child.wait()
        except BaseException:
            child.kill()
            raise

    def shell(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """``bitwright`` with ``words`` in the folder ``cwd``, as a shell would run it."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            code = self.begin(*words, cwd=cwd, files=[output.fileno(), errors.fileno()]).wait()
            output.seek(0), errors.seek(0)
            return subprocess.CompletedProcess(words, code, output.read().decode(), errors.read().decode())

    def begin(self, *words: str, cwd: Path, files: list[int]) -> Child:
        """The same without waiting; ``files`` take what it says and its errors."""
        return Child(self._connected(), ["bitwright.cli.main", *words], cwd, files, dict(os.environ))

    def close(self) -> None:
        if self.kept:
            self.kept.terminate()
            self.kept.wait()
        if self.own:
            self.own.cleanup()

    def _connected(self) -> socket.socket:
        if not self.started:
            command = [sys.executable, "-m", "tests.nursery", str(self.place)]
            self.kept = subprocess.Popen(command, env={**os.environ, **QUIET}, cwd=Path(__file__).parent.parent)
            self.started = True
        end = time.monotonic() + SECONDS
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connection.connect(str(self.place))
                return connection
            except OSError:
                connection.close()
                if time.monotonic() > end or (self.kept and self.kept.poll() is not None):
                    raise
                time.sleep(0.05)


class Child:
    """A process that the nursery forked for us."""

    def __init__(self, own: socket.socket, arguments: list[str], folder: Path, files: list[int], environment: dict[str, str]):
        job = {"arguments": arguments, "folder": str(folder), "environment": environment}
        socket.send_fds(own, [json.dumps(job).encode()], files)
        self.own, self.pid = own, int(own.recv(MOST_BYTES))

    def wait(self) -> int:
        with self.own:
            return int(self.own.recv(MOST_BYTES))

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()


def _of_imports() -> dict[str, str]:
    """Variables that decide what imports do; what silences libraries is the same for all that is started here."""
    return {name: value for name, value in {**os.environ, **QUIET}.items() if name.startswith(OF_IMPORTS)}


def serve(place: Path) -> None:
    """Fork a child for each job, tell its number and then how it ended. Ends with the process that started it."""
    for name in IMPORTED:
        __import__(name)
    gc.freeze()  # what was imported stays: collecting in a child would copy and walk all of it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent, listening = os.getppid(), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(place))
    listening.listen()
    listening.settimeout(1)
    while os.getppid() == parent:
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        message, files, _, _ = socket.recv_fds(connection, MOST_BYTES, 2)
        job = json.loads(message)
        worker = job["arguments"][0]
        __import__(worker)
        if worker in LATER:
            __import__(LATER[worker])
        if os.fork() == 0:  # it waits, so that others can be served meanwhile
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(connection, job, files, place)
            os._exit(0)
        connection.close()
        for file in files:
            os.close(file)


def _answer(connection: socket.socket, job: dict[str, Any], files: list[int], place: Path) -> None:
    child = os.fork()
    if child == 0:
        connection.close()
        _be(job, files, place)
    for file in files:
        os.close(file)
    connection.send(str(child).encode())
    connection.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def _be(job: dict[str, Any], files: list[int], place: Path) -> None:
    """Be the process of ``job``."""
    code = 1
    try:
        for own, file in zip((1, 2), files, strict=True):
            os.dup2(file, own)
        for file in files:
            os.close(file)
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(job["environment"])
        process._run = Nursery(place).run
        sys.argv = list(job["arguments"])
        sys.modules.pop(job["arguments"][0], None)  # which runs anew
        runpy.run_module(job["arguments"][0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter ends
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
