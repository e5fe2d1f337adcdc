"""Workers of tests, forked from one process that has imported the libraries: imports take longer than most of their jobs.

A child has imported and done nothing else, as a process of its own. Commands that tests start themselves, and the tests of
workers that fail (evaluate/test_process.py), start processes as people's runs do.
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
import traceback
from pathlib import Path
from typing import Any

from bitwright.evaluate import process
from bitwright.host.progress import Advance, Reporter, relayed
from bitwright.host.quiet import QUIET

REAL = process._run
IMPORTED = ("bitwright.evaluate.worker", "bitsandbytes", "transformers.models.llama.modeling_llama")
OF_IMPORTS = ("HF_", "TRANSFORMERS_", "OMP_", "XDG_", "PYTHON", "BITWRIGHT_")  # variables that imports read
MOST_BYTES = 1 << 20


class Nursery:
    """The process that forks, started with the first worker; one at a time."""

    def __init__(self) -> None:
        self.environment = {name: value for name, value in os.environ.items() if name.startswith(OF_IMPORTS)}
        self.socket: socket.socket | None = None

    def run(self, command: list[str], errors: Path, reporter: Reporter, advance: Advance) -> int:
        """As bitwright.evaluate.process runs a command."""
        if self.environment != {name: value for name, value in os.environ.items() if name.startswith(OF_IMPORTS)}:
            return REAL(command, errors, reporter, advance)
        own = self._started()
        read, write = os.pipe()
        job = {"arguments": command[2:], "folder": os.getcwd(), "environment": {**os.environ, **QUIET}}
        socket.send_fds(own, [json.dumps(job).encode()], [write])
        os.close(write)
        child = int(own.recv(MOST_BYTES))
        try:
            with open(errors, "w", encoding="utf-8") as log, open(read, encoding="utf-8", errors="replace") as output:
                for line in relayed(output, advance, reporter.say):
                    log.write(line)
                    if reporter.verbose:
                        reporter.say(line.rstrip("\n"))
            return int(own.recv(MOST_BYTES))
        except BaseException:
            os.kill(child, signal.SIGKILL)
            own.recv(MOST_BYTES)
            raise

    def close(self) -> None:
        if self.socket:
            self.socket.close()

    def _started(self) -> socket.socket:
        if self.socket is None:
            self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            command = [sys.executable, "-m", "tests.nursery", str(other.fileno())]
            subprocess.Popen(command, pass_fds=[other.fileno()], env={**os.environ, **QUIET}, cwd=Path(__file__).parent.parent)
            other.close()
        return self.socket


def serve(own: socket.socket) -> None:
    """Fork a child for each job, tell its number and then how it ended, until nobody asks any more."""
    for name in IMPORTED:
        __import__(name)
    gc.freeze()  # what was imported stays: collecting in a child would copy and walk all of it
    while True:
        message, descriptors, _, _ = socket.recv_fds(own, MOST_BYTES, 1)
        if not message:
            return
        child = os.fork()
        if child == 0:
            own.close()
            _be(json.loads(message), descriptors[0])
        os.close(descriptors[0])
        own.send(str(child).encode())
        own.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def _be(job: dict[str, Any], output: int) -> None:
    """Be the process of ``job``."""
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(job["environment"])
        module, *rest = job["arguments"]
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
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
    serve(socket.socket(fileno=int(sys.argv[1])))
