"""Things in the cache directory: made once, by one process, whole or not at all, and made again when they are damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from bitwright.checkpoint.output import write_failed
from bitwright.errors import fail

MANIFEST = ".whole.json"  # in a kept folder: the size of each file that it was left with


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """No other process makes ``place`` meanwhile: a second one waits. Raises BitwrightError where nothing can be written."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.with_name(f".{place.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise write_failed(place.parent, error) from error
    try:
        yield
    finally:
        lock.release()


def kept_folder(place: Path, make: Callable[[Path], None]) -> Path:
    """The folder ``place``, which ``make`` fills where it is not there, or not as it was left."""
    with alone(place):
        if is_whole(place):
            return place
        shutil.rmtree(place, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
        try:
            make(scratch)
            (scratch / MANIFEST).write_text(json.dumps(_sizes(scratch)), encoding="utf-8")
            scratch.replace(place)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return place


def is_whole(place: Path) -> bool:
    """Whether a kept folder holds every file that it was left with, of the same size."""
    try:
        return bool(_sizes(place) == json.loads((place / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def _sizes(place: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(place.iterdir()) if path.is_file() and path.name != MANIFEST}


def sha256(path: Path) -> str:
    """Of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept_entries(cache: Path) -> list[tuple[str, int]]:
    """What the cache directory holds, by name, with the bytes of each; links are not followed."""
    if not cache.is_dir():
        return []
    return [(path.name, _nbytes(path)) for path in sorted(cache.iterdir()) if not path.name.startswith(".")]


def remove_kept(cache: Path) -> None:
    """Empty the cache directory. Raises BitwrightError where the system refuses."""
    try:
        for path in cache.iterdir() if cache.is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise fail(
            "cache/clean",
            error.filename or cache,
            saw=error.strerror or type(error).__name__,
            wanted="what lies in the cache can be removed",
            help=f"end other runs, then remove {cache} yourself",
        ) from error


def _nbytes(path: Path) -> int:
    if path.is_symlink() or path.is_file():
        return path.lstat().st_size
    return sum(part.lstat().st_size for part in path.rglob("*") if part.is_symlink() or part.is_file())
