"""Where results appear: refused before anything slow, made aside, put in place in one step. Only what is ours is replaced."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from bitwright.errors import BitwrightError, fail, in_one_line
from bitwright.host.texts import UnreadableError, read_object

MARGIN_BYTES = 64 * 2**20  # kept free on the disk beside what is written
MARK = ".bitwright"  # in a folder that we made and may remove; locked while a run works there
PLACING = ".placing"  # beside the mark: the names that were being put in place
MADE, REPLACED = "made", "replaced"  # inside a scratch folder
PROOF = "bitwright.json"  # says that a checkpoint is ours
ADAPTER_OF = "adapter_of"  # in the proof of an adapter: the model that it is loaded over
TRAINED_BESIDE = "trained_beside"  # the same: the name of the file or directory whose weights it was trained beside
SHOWN = 6  # pictures that a card shows
CARD_PICTURES = tuple(f"picture-{i}.png" for i in range(1, SHOWN + 1))
LOSSES = "loss.svg"  # of a model that was trained
TEXTS = (PROOF, "report.json", "report.html", "README.md", "Modelfile")
BESIDE = (*TEXTS, "mmproj.gguf", LOSSES, *CARD_PICTURES)  # what goes with a model


def beside(out: Path, name: str) -> Path:
    """Where the text ``name`` belongs that goes with the model ``out``: inside a directory, else next to the file."""
    return out / name if out.is_dir() else out.with_name(f"{out.stem}.{name}")


@dataclass(frozen=True)
class Output:
    """A model that a run will create at ``path``: a directory, or a file and the texts beside it."""

    path: Path
    is_file: bool
    overwrite: bool = False  # whether a checkpoint of ours that is there already gives way

    @property
    def scratch(self) -> Path:
        """The folder beside ``path`` where everything is made."""
        return self.path.absolute().parent / f".{self.path.name}.partial"

    def require_place(self) -> None:
        """Raise BitwrightError where nothing can be created."""
        if not self.path.name or self.path.name == "..":
            raise fail("output/name", repr(str(self.path)), saw="no name", wanted="OUT names what to create", help="OUT/NAME")
        try:
            link = self.path.is_symlink()
        except OSError as error:  # a name longer than the file system takes
            raise write_failed(self.path, error) from error
        if link:
            raise fail(
                "output/link",
                self.path,
                saw="a symbolic link",
                wanted="OUT is a place of its own",
                help="name the place that it points to, or another",
            )
        _require_writable(self.path)

    def require_free(self) -> None:
        """Raise BitwrightError where something is in the way that is not ours to replace."""
        for path in self._in_the_way():
            ours = _is_ours(self.path)
            if ours and self.overwrite:
                continue
            raise fail(
                "output/exists",
                path,
                saw="already there",
                wanted="OUT and the texts beside it are new",
                help="name another OUT" + (", or replace this checkpoint of ours: --overwrite" if ours else ""),
            )

    def _in_the_way(self) -> Iterator[Path]:
        """What lies where we want to write, but for an empty directory and for what a killed run of ours left half placed."""
        left = set()
        if (self.scratch / MARK).exists() and (self.scratch / PLACING).exists():
            left = set((self.scratch / PLACING).read_text(encoding="utf-8").split("\n"))
        wanted = [self.path, *(self.path.with_name(f"{self.path.stem}.{name}") for name in BESIDE)]
        for path in wanted if self.is_file else wanted[:1]:
            empty = not self.is_file and path.is_dir() and not any(path.iterdir())
            if os.path.lexists(path) and path.name not in left and not empty:
                yield path

    @contextmanager
    def claimed(self) -> Iterator[Claim]:
        """Hold the place for a whole run: a second one is told at once. What is made appears at the end of ``Claim.made``."""
        self.require_place()
        with owned(self.scratch, self.path):
            try:
                self._restore()
                self.require_free()
                yield Claim(self)
            finally:
                self._restore()
                if not (self.scratch / PLACING).exists():  # else the next run has to know what is ours
                    shutil.rmtree(self.scratch, ignore_errors=True)

    def _restore(self) -> None:
        """Put back what was to be replaced, where the new one did not come to its place."""
        replaced = self.scratch / REPLACED
        if replaced.exists() and not os.path.lexists(self.path):
            os.rename(replaced, self.path)


@dataclass(frozen=True)
class Claim:
    """A place that this run holds."""

    output: Output

    @contextmanager
    def made(self) -> Iterator[Path]:
        """Where to make the model, a new directory or a file that is not there yet; put in place when the block ends well.

        What the disk refuses in the block is said of the output.
        """
        made = self.output.scratch / MADE
        try:
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            yield made / self.output.path.name if self.output.is_file else made
            self._place(made, self.output.path.absolute())
        except OSError as error:
            raise write_failed(self.output.path, error) from error
        except Exception as error:
            if type(error) not in (SafetensorError, Exception):  # what libraries in Rust raise for it
                raise
            raise write_failed(self.output.path, OSError(in_one_line(error))) from error

    def _place(self, made: Path, out: Path) -> None:
        """Put in place what was made; the model itself at last."""
        _sync(made)
        placing = self.output.scratch / PLACING
        if self.output.is_file:
            paths = sorted(made.iterdir(), key=lambda path: path.name == out.name)
            placing.write_text("\n".join(path.name for path in paths), encoding="utf-8")
            for path in paths:
                os.replace(path, out.parent / path.name)
            placing.unlink()
        else:
            if out.exists() and any(out.iterdir()):
                os.rename(out, self.output.scratch / REPLACED)
            os.rename(made, out)
        _sync(out.parent)


@contextmanager
def owned(folder: Path, where: Path, ours: bool = True) -> Iterator[None]:
    """``folder`` is made, or is there, and no other process works in it; errors name ``where``.

    Raises BitwrightError while another run holds it; where it shall be ``ours``, which may be removed, also for a folder that
    somebody else has filled.
    """
    if ours and os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or _is_foreign(folder)):
        raise fail(
            "output/foreign",
            folder,
            saw="there already, and not made by Bitwright",
            wanted="this hidden name is free for the work of the run",
            help="rename it, or name another OUT",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failed(where, error) from error
    lock = FileLock(folder / MARK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise fail(
            "output/busy",
            where,
            saw="another run is writing it",
            wanted="one run for one OUT",
            help="wait for it, or name another OUT",
        ) from None
    except OSError as error:
        raise write_failed(where, error) from error
    try:
        yield
    finally:
        lock.release()
        if ours and folder.is_dir() and [path.name for path in folder.iterdir()] == [MARK]:  # nothing was begun
            shutil.rmtree(folder, ignore_errors=True)


def _is_foreign(folder: Path) -> bool:
    return not (folder / MARK).exists() and any(folder.iterdir())


def _is_ours(out: Path) -> bool:
    """Whether a run of ours wrote the model at ``out``, or the adapter."""
    try:
        proof = read_object(beside(out, PROOF))
        return ADAPTER_OF in proof or str(proof["plan"]["schema"]).startswith("bitwright.")
    except (UnreadableError, KeyError, TypeError):
        return False


@contextmanager
def atomic_output(out: Path, is_file: bool) -> Iterator[Path]:
    """Where to make ``out``, which is there when the block ends well, with what was written beside it; else nothing is."""
    with Output(out, is_file).claimed() as claim, claim.made() as place:
        yield place


@contextmanager
def atomic_outputs(outs: Sequence[Path], is_file: bool) -> Iterator[list[Path]]:
    """``atomic_output`` of several at once."""
    with ExitStack() as stack:
        yield [stack.enter_context(atomic_output(out, is_file)) for out in outs]


def remove(out: Path) -> None:
    """Empty the directory ``out``, or remove the file."""
    if not out.is_dir():
        out.unlink()
        return
    shutil.rmtree(out)
    out.mkdir()


def require_apart(out: Path, sources: Sequence[Path], work: Path) -> None:
    """Raise BitwrightError where ``out`` is or lies in what is read, or the work directory is ``out`` or lies within."""
    try:
        place, work = out.resolve(), work.resolve()
    except OSError as error:  # a name longer than the file system takes
        raise write_failed(out, error) from error
    for source in sources:
        if os.path.exists(source) and source.resolve() in (place, *place.parents):
            raise fail(
                "output/source", out, saw=f"inside {source}", wanted="OUT lies outside the source", help="name an OUT beside it"
            )
    if place in (work, *work.parents):
        raise fail(
            "output/workdir",
            out,
            saw=f"the work directory is {work}",
            wanted="OUT is apart from the work directory",
            help="name another --workdir",
        )


def require_text_place(path: Path, mark: bytes) -> None:
    """Raise BitwrightError unless the text ``path`` can be written: into a directory that is there, over nothing but a file
    of ours, which holds ``mark``."""
    try:
        if path.is_dir() or (path.exists() and (not path.is_file() or mark not in path.read_bytes())):
            raise fail(
                "output/exists",
                path,
                saw="a directory" if path.is_dir() else "something that Bitwright did not write",
                wanted="a new name, or an earlier result to replace",
                help="-o ANOTHER_NAME",
            )
        if not path.absolute().parent.is_dir():
            raise fail(
                "output/parent",
                path,
                saw=f"{path.parent} is not there",
                wanted="a directory to write into",
                help=f"mkdir -p the directory, or -o {path.name}",
            )
    except OSError as error:
        raise write_failed(path, error) from error
    _require_writable(path)


def _require_writable(path: Path) -> None:
    try:
        parent = next(p for p in path.absolute().parents if p.exists())
        os.rmdir(tempfile.mkdtemp(dir=parent))  # the only test that also holds for root and for read-only mounts
    except OSError as error:
        raise fail(
            "output/read-only",
            path,
            saw=error.strerror or str(error),
            wanted="a directory that can be written",
            help="name an OUT elsewhere",
        ) from error


def require_space(where: Path, nbytes: int, what: str) -> None:
    """Raise BitwrightError unless the disk that holds ``where`` has ``nbytes`` free, and a margin."""
    parent = next(p for p in [where.absolute(), *where.absolute().parents] if p.exists())
    free = shutil.disk_usage(parent).free
    if free < nbytes + MARGIN_BYTES:
        raise fail(
            "output/disk",
            where,
            saw=f"{free / 1e9:.2f} GB free",
            wanted=f"{nbytes / 1e9:.2f} GB free for {what}",
            help="free the disk, or name a directory on another one (--workdir, OUT)",
        )


def write_failed(where: Path, error: OSError) -> BitwrightError:
    """The error for what the disk refused."""
    return fail(
        "output/write",
        where,
        saw=error.strerror or str(error),
        wanted="a place that can be written, on a disk with room",
        help="name another place, or free the disk and run the same command again: finished blocks are kept",
    )


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; the file appears whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text``; the file appears whole or not at all."""
    scratch = path.with_name(f".{path.name}.partial")
    try:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")  # a name need not be Unicode
        os.replace(scratch, path)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise write_failed(path, error) from error


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
