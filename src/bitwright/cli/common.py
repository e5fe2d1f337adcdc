"""What the verbs share: options, sizes, and how an error leaves the program."""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from bitwright.containers.registry import CONTAINERS
from bitwright.errors import BitwrightError, Finding, fail, in_one_line, printable
from bitwright.host.sizes import size_nbytes
from bitwright.settings import Effort

P = ParamSpec("P")
R = TypeVar("R")
INTERNAL = 70  # exit code of a mistake of ours: EX_SOFTWARE of sysexits.h

TEXT, MACHINE, SHOWN = "Calibration text", "Machine", "What is shown"  # panels of --help

Calibration = Annotated[
    str,
    typer.Option(
        rich_help_panel=TEXT,
        help="mixed (the default where the model fits), installed, self, documentation, code, pictures, a .txt/.jsonl/.parquet "
        "file, a folder of pictures, or a datasets id.",
    ),
]
HeldOut = Annotated[
    str,
    typer.Option(
        help="Text for the comparison, other than --calibration: documentation, a file, a folder of images with answers."
    ),
]
EffortOption = Annotated[
    Effort,
    typer.Option(
        rich_help_panel=TEXT,
        help="How much calibration text: quick reads a quarter, and stays about a fifth further from 16 bit; thorough reads "
        "three times as much, and comes a few hundredths closer.",
    ),
]
Sequences = Annotated[
    int | None, typer.Option(min=6, rich_help_panel=TEXT, help="Calibration sequences, instead of what --effort gives.")
]
Length = Annotated[int, typer.Option(min=16, rich_help_panel=TEXT, help="Tokens per calibration sequence.")]
Seed = Annotated[
    int,
    typer.Option(min=0, max=2**63 - 1, rich_help_panel=MACHINE, help="The same seed on the same machine gives the same bytes."),
]
Workdir = Annotated[
    str,
    typer.Option(
        rich_help_panel=MACHINE,
        help="Folder for finished pieces, which stays. Default: a hidden one beside OUT, removed at the end.",
    ),
]
MaxMemory = Annotated[str, typer.Option(rich_help_panel=MACHINE, help="Ceiling for the whole process, such as 8GB.")]
Device = Annotated[str, typer.Option(rich_help_panel=MACHINE, help="auto, cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str, typer.Option(rich_help_panel=MACHINE, help="Arithmetic of the measurement: auto, bfloat16, float32.")]
ContainerName = Annotated[
    str, typer.Option("--container", help=f"What to write: {', '.join(CONTAINERS)}. quantize also goes by the name of OUT.")
]
FusedGroups = Annotated[
    bool, typer.Option(help="Treat q, k, v alike, and gate and up, as vLLM needs. Off: for transformers only.")
]
Imatrix = Annotated[
    str, typer.Option(rich_help_panel=TEXT, help="llama.cpp's importance matrix, used together with the calibration text.")
]
Formats = Annotated[str, typer.Option(help="Formats to measure instead of the usual ones, such as nf4-b64,nf4-b32-dq.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", rich_help_panel=MACHINE, help="Run code that the model brings along. Off unless asked for."
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", rich_help_panel=SHOWN, help="Also show what libraries and worker processes print.")
]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=SHOWN, help="Print the result as JSON on standard output, and no progress.")
]


def guarded(run: Callable[P, R]) -> Callable[P, R]:
    """Print a BitwrightError in its four parts and leave with exit code 2; what else comes up is a mistake of ours: 70."""

    @functools.wraps(run)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return _said_by_the_system(run, *args, **kwargs)
        except BitwrightError as error:
            if kwargs.get("json_"):
                print(json.dumps({"error": error.finding.to_dict()}, indent=1))
            print(error.finding, file=sys.stderr)
            raise typer.Exit(2) from None
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            print(f"\n{_stopped()}", file=sys.stderr)
            raise typer.Exit(130) from None
        except SystemExit:
            raise
        except BaseException as error:  # noqa: BLE001 - the last guard: nobody shall read a traceback, not even one of Rust
            print(_unexpected(error), file=sys.stderr)
            raise typer.Exit(INTERNAL) from None

    return wrapped


def _said_by_the_system(run: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run; what the system refuses, such as a name that is too long or a file that may not be read, is an error in words."""
    try:
        return run(*args, **kwargs)
    except BrokenPipeError:  # who read has had enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at its end
        raise typer.Exit(0) from None
    except OSError as error:
        raise fail(
            "system/refused",
            str(error.filename or "")[:200] or "the system",
            saw=error.strerror or in_one_line(error),
            wanted="files and folders that the system lets us use",
            help="check the name and its permissions, or name another",
        ) from error


def _stopped() -> str:
    """What to say after Ctrl-C: how far it was, how to go on, how to throw away what is kept."""
    progress = sys.modules.get("bitwright.host.progress")
    reporter = progress.Reporter.current if progress else None
    where = f" at {reporter.where()}" if reporter and reporter.where() else ""
    if not reporter or not reporter.kept:
        return f"stopped{where}"
    if not reporter.kept.name.startswith("."):  # a --workdir, which may hold other things
        return f"stopped{where}. The same command goes on from there, with what lies in {reporter.kept}"
    discard = f"rm -r {shlex.quote(str(reporter.kept))}"
    return f"stopped{where}. The same command goes on from there; to discard what is finished: {discard}"


def _unexpected(error: BaseException) -> Finding:
    """What to say of an error that nobody foresaw; its traceback is kept in a file."""
    written = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="bitwright-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(written)
        told = f"report it, with {file.name}"
    except OSError:  # no place for it
        told = f"report it, with this:\n{written}"
    return Finding(
        "internal/unexpected", "bitwright", in_one_line(error), "this is a mistake in Bitwright, not in what you typed", told
    )


def wide_console() -> Any:
    """Standard output; tables keep all their columns also where it is not a terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


def print_plain(console: Any, text: str, code: bool = False) -> None:
    """Print ``text``, which may hold names from files and commands, as it stands and without control characters.

    On a terminal sentences are wrapped between words; ``code``, which is copied, never is.
    """
    console.print(printable(text), highlight=False, markup=False, soft_wrap=code or not console.is_terminal)


def settings_of(**options: Any) -> Any:
    """Settings from the options that the verbs share."""
    from bitwright.settings import Settings

    formats = tuple(name.strip() for name in options.pop("formats", "").split(",") if name.strip())
    return Settings(formats=formats, max_memory=size_nbytes(options.pop("max_memory", "")), **options)
