"""Pictures of people: rows of .jsonl and .parquet files with images, and folders of pictures.

An image is decoded here and nowhere else: its first frame, in RGB, scaled down to LONGEST_SIDE.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitwright.data.pictures import Picture
from bitwright.data.rows import has_image, is_data_set, read_rows
from bitwright.errors import BitwrightError, fail
from bitwright.host.packages import not_installed
from bitwright.host.texts import UnreadableError, read_text

MOST_IMAGES = 8  # of a row
LONGEST_SIDE = 1024  # pixels: larger pictures are scaled down
MOST_PIXELS = 100_000_000  # of a file: more are refused before they are decoded
SMALLEST_SIDE = 8
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
WANTED = f"at most {MOST_IMAGES} images a row, in a list"
DESCRIBE = "Describe the picture."


def is_folder(source: str) -> bool:
    """Whether ``source`` is a folder, which can only be one of pictures."""
    return os.path.isdir(source)


def read_pictures(source: str) -> list[Picture]:
    """The pictures of a folder, or those of the rows of a file or data set that have any (column ``image`` or ``images``).

    ``image`` of a row is the path of a file beside its own, or bytes, ``images`` several of them; it asks with ``question`` or
    ``messages``, and ``answer`` is optional. In a folder NAME.txt beside NAME.jpg is its caption. Raises BitwrightError that
    names the row.
    """
    path = Path(source)
    if is_folder(source):
        found = list(_of_folder(path))
        if not found:
            raise _bad(source, "no picture in this folder", f"files that end in {', '.join(SUFFIXES)}")
        return found
    return [picture_of(row, path.parent, f"{source}, row {i}") for i, row in enumerate(read_rows(source), 1) if has_image(row)]


def pictures_in(source: str) -> list[Picture]:
    """The same; none for a source that has no images, or is a word of ours."""
    return read_pictures(source) if os.path.exists(source) or is_data_set(source) else []


def captioned(source: str) -> list[dict[str, Any]]:
    """A row for each picture of a folder that has a caption beside it."""
    found = ((path.name, _caption(path)) for path in _files(Path(source)))
    return [{"image": name, "question": DESCRIBE, "answer": caption} for name, caption in found if caption]


def _of_folder(folder: Path) -> Iterator[Picture]:
    for path in _files(folder):
        yield Picture(opened(path, str(path)), DESCRIBE, _caption(path))


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]


def _caption(picture: Path) -> str:
    beside = picture.with_suffix(".txt")
    try:
        return read_text(beside).strip() if beside.exists() else ""
    except UnreadableError as error:
        raise _bad(str(beside), str(error), "a caption in UTF-8") from None


def picture_of(row: dict[str, Any], folder: Path, where: str) -> Picture:
    """The picture of a ``row`` of a file in ``folder``. Raises BitwrightError, naming the row by ``where``."""
    first, *more = images_of(row, folder, where)
    question, answer = _talk(row)
    return Picture(first, question or DESCRIBE, answer, more=tuple(more))


def images_of(row: dict[str, Any], folder: Path, where: str) -> list[Any]:
    """The images of such a ``row``, opened."""
    given = [row["image"]] if row.get("image") not in (None, "") else row["images"]
    if not isinstance(given, list) or len(given) > MOST_IMAGES:
        raise _bad(where, f"{len(given)} images" if isinstance(given, list) else f"images is {type(given).__name__}", WANTED)
    return [_image_of(one, folder, where) for one in given]


def _image_of(given: Any, folder: Path, where: str) -> Any:
    """What a row holds as an image: a path, bytes, either of them as datasets stores it, or an image that datasets decoded."""
    if isinstance(given, dict):  # as datasets stores them
        given = given.get("bytes") or given.get("path")
    if isinstance(given, str):
        if not os.path.isfile(folder / given):  # false, and no exception, for a name that no file can have
            raise _bad(where, f"{given[-80:]!r}: no such file", "a file for every row")
        place = (folder / given).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise _bad(where, f"{given[:80]!r} leads out of {folder}", "images that lie beside the file")
        return opened(place, where)
    if isinstance(given, bytes):
        return opened(io.BytesIO(given), where)
    if hasattr(given, "save") and hasattr(given, "convert"):
        file = io.BytesIO()
        given.convert("RGB").save(file, "PNG", exif=given.getexif() if hasattr(given, "getexif") else b"")
        return opened(file, where)
    raise _bad(where, f"image is {type(given).__name__}", "a path or the bytes of an image")


def _talk(row: dict[str, Any]) -> tuple[str, str]:
    """Question and answer of a row, from its columns or its messages."""
    said = {"user": "", "assistant": ""}
    messages = row.get("messages")
    for message in messages if isinstance(messages, list) else ():
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else ("", "")
        if isinstance(content, list):
            content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict)).strip()
        if isinstance(role, str) and role in said and isinstance(content, str) and not said[role]:
            said[role] = content
    return str(row.get("question") or said["user"]), str(row.get("answer") or said["assistant"])


def opened(file: Path | io.BytesIO, where: str) -> Any:
    """The first frame of an image in RGB, upright, scaled down to LONGEST_SIDE. Raises BitwrightError for what is none."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise needs_pillow(where) from None
    try:
        with Image.open(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise _bad(where, f"{image.width} x {image.height} pixels", f"at most {MOST_PIXELS:,} pixels")
            if min(image.size) < SMALLEST_SIDE:
                raise _bad(where, f"{image.width} x {image.height} pixels", f"at least {SMALLEST_SIDE} pixels a side")
            image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
            found = ImageOps.exif_transpose(image).convert("RGB")  # phones note how they were held
    except BitwrightError:
        raise
    except Exception as error:  # noqa: BLE001 - every decoder has its own
        raise _bad(where, f"{type(error).__name__}: {str(error)[:100]}", "an image that can be opened") from None
    found.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return found


def needs_pillow(where: object) -> BitwrightError:
    return not_installed("images/package", where, "PIL", "it opens and draws pictures")


def _bad(where: str, saw: str, wanted: str) -> BitwrightError:
    return fail("images/row", where, saw=saw, wanted=wanted, help="repair the row or remove it")
