"""A job in a fresh process, which loads models with their stock runtimes (no torch)."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from bitwright.checkpoint.output import write_failed
from bitwright.errors import BitwrightError, Finding, fail
from bitwright.host.parent import end_with_parent
from bitwright.host.progress import Advance, Reporter, relayed
from bitwright.host.quiet import QUIET, silence_libraries

ANSWER = "out.json"


class WorkerError(BitwrightError):
    """A worker process that failed. ``answered``: what it had answered until then, None where that is nothing."""

    def __init__(self, finding: Finding, answered: Any) -> None:
        super().__init__(finding)
        self.answered = answered


def run_worker(module: str, job: dict[str, Any], folder: Path, paths: list[str], reporter: Reporter, advance: Advance) -> Any:
    """What ``python -P -m module`` answers to ``job``, both through files in ``folder``; -P: no module of the folder that we
    stand in.

    ``paths`` are the models of the job. ``advance`` is told how far it is; what it and its libraries write is kept, and shown
    at once only by a verbose ``reporter``. Raises WorkerError when the process fails, with the last line it wrote; it names
    the model that was at work, which the process says by ``say_at``. An answer may be written part by part.
    """
    job_path, out_path, errors, at = (folder / name for name in ("job.json", ANSWER, "errors.txt", "at.txt"))
    job_path.write_text(json.dumps(job | {"at": str(at)}), encoding="utf-8")
    at.unlink(missing_ok=True)  # of a process before this one
    command = [sys.executable, "-P", "-m", module, str(job_path), str(out_path)]
    code = _run(command, errors, reporter, advance)
    if code:
        lines = errors.read_text(encoding="utf-8").strip().splitlines() or ["see above"]
        if os.strerror(errno.ENOSPC) in lines[-1]:  # libraries say it in exceptions of their own
            raise write_failed(folder.parent, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        where = at.read_text(encoding="utf-8") if at.exists() else ", ".join(paths)
        finding = fail(
            "evaluate/process",
            where,
            saw=f"{_end(code)}: {_said(lines)[:300]}",
            wanted="the stock runtime loads and runs every model",
            help="load the model by hand to see the whole message",
        ).finding
        raise WorkerError(finding, json.loads(out_path.read_text(encoding="utf-8")) if out_path.exists() else None)
    return json.loads(out_path.read_text(encoding="utf-8"))


def _run(command: list[str], errors: Path, reporter: Reporter, advance: Advance) -> int:
    """The exit code of ``command``, whose words are kept in the file ``errors``."""
    environment = {**os.environ, **QUIET}
    with (
        open(errors, "w", encoding="utf-8") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, encoding="utf-8", errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in relayed(process.stdout, advance, reporter.say):
                log.write(line)
                if reporter.verbose:
                    reporter.say(line.rstrip("\n"))
            return process.wait()
        except BaseException:
            process.kill()
            raise


def _said(lines: list[str]) -> str:
    """What of the last words says what was wrong: the headline of an error of ours, else the last line."""
    headlines = [line.partition(": ")[2] for line in lines if line.startswith("bitwright.") and "error[" in line]
    return headlines[-1] if headlines else lines[-1]


def begin() -> tuple[dict[str, Any], Path]:
    """In a worker, at its start: the job, and where the answer goes. It ends with the process that started it."""
    end_with_parent()
    silence_libraries()
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return job, Path(sys.argv[2])


def say_at(job: dict[str, Any], candidate: dict[str, Any]) -> None:
    """In a worker: note which model is at work, for the message if the process dies of it."""
    if "at" in job:
        Path(job["at"]).write_text(f"{candidate['label']} ({candidate['path']})", encoding="utf-8")


def _end(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in {*signal.Signals} else str(-code)
    return f"ended by {name}" + (", as where memory runs out" if name == "SIGKILL" else "")
