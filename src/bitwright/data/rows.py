"""Texts of people: rows of .txt, .jsonl and .parquet files and of data sets, as plain text."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from bitwright.data.chat_template import Conversation, TemplateFailedError, render_with
from bitwright.errors import BitwrightError, fail
from bitwright.host.packages import not_installed
from bitwright.host.texts import UnreadableError, parse_json, read_text

LONGEST_ID = 200  # characters of a datasets id
MOST_ROWS, MOST_ROWS_WITH_IMAGES = 2000, 256  # of a data set that is calibrated on, or compared on
MOST_BYTES = 2**31  # of a file of texts


def read_texts(source: str, tokenizer: Any) -> list[str]:
    """Texts of a .txt, .jsonl or .parquet file, or a datasets id: column ``text``, or ``messages`` by the chat template.

    Rows with images are another reader's (image_rows.py).
    """
    return _texts_of([row for row in read_rows(source) if not has_image(row)], tokenizer, source)


def has_image(row: Any) -> bool:
    return isinstance(row, dict) and (row.get("image") not in (None, "") or bool(row.get("images")))


def read_domains(source: str, tokenizer: Any) -> dict[str, list[str]]:
    """The same texts by the column ``domain`` of their rows; all under "" unless every row names one."""
    rows = [row for row in read_rows(source) if not has_image(row)]
    named = all(isinstance(row, dict) and isinstance(row.get("domain"), str) for row in rows)
    domains: dict[str, list[str]] = {}
    for row, text in zip(rows, _texts_of(rows, tokenizer, source), strict=True):
        domains.setdefault(row["domain"] if named else "", []).append(text)
    return domains


def read_rows(source: str, whole: bool = False) -> Iterable[Any]:
    """The rows of a file or a data set as they stand there; of a data set not ``whole`` the first MOST_ROWS."""
    path = Path(os.path.expanduser(source))
    if os.path.isfile(path):  # false, and no exception, for a name longer than any file has
        readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
        return readers.get(path.suffix, _plain_rows)(path)
    if not is_data_set(source):
        raise fail(
            "calibration/source",
            source[:LONGEST_ID],
            saw="no such file",
            wanted="a .txt, .jsonl or .parquet file, a datasets id (owner/name), self or documentation",
            help="check the path, or leave --calibration out",
        )
    return _hub_rows(source, whole)


def is_data_set(source: str) -> bool:
    """Whether ``source`` can only be a datasets id, owner/name."""
    return (
        not os.path.exists(os.path.expanduser(source))
        and len(source) <= LONGEST_ID
        and source.count("/") == 1
        and not source.startswith((".", "/", "~"))
    )


def _plain_rows(path: Path) -> Iterable[Any]:
    return [{"text": _text_of(path)}]


def _jsonl_rows(path: Path) -> Iterable[Any]:
    for number, line in enumerate(_text_of(path).split("\n"), 1):
        if line.strip():
            try:
                yield parse_json(line)
            except UnreadableError:
                raise fail(
                    "calibration/jsonl",
                    f"{path}:{number}",
                    saw=line[:60],
                    wanted="one JSON object per line",
                    help="repair the line or remove it",
                ) from None


def _text_of(path: Path) -> str:
    try:
        return read_text(path, MOST_BYTES)
    except UnreadableError as error:
        raise fail(
            "calibration/text", path, saw=str(error), wanted="a text file in UTF-8", help="iconv -t UTF-8, or name another file"
        ) from None


def _parquet_rows(path: Path) -> Iterable[Any]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise _needs("pyarrow", path) from None
    try:
        table = parquet.read_table(path)
    except Exception as error:
        raise fail(
            "calibration/parquet", path, saw=str(error).splitlines()[0], wanted="a parquet file", help="write it again"
        ) from error
    rows: list[Any] = table.to_pylist()
    return rows


@lru_cache(2)  # asked for by more than one stage of a run
def _hub_rows(name: str, whole: bool) -> Iterable[Any]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise _needs("datasets", name) from None
    try:
        stream = load_dataset(name, split="train", streaming=True)
        rows: list[Any] = []
        n_images = 0
        for row in stream:
            rows.append(row)
            n_images += has_image(row)
            if not whole and (len(rows) >= MOST_ROWS or n_images >= MOST_ROWS_WITH_IMAGES):
                break
        return rows
    except Exception as error:
        raise fail(
            "calibration/hub",
            name,
            saw=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            wanted="a data set with a train split that can be reached",
            help="name a local file",
        ) from error


def _needs(package: str, where: object) -> BitwrightError:
    return not_installed("calibration/package", where, package, "it reads this source")


def _texts_of(rows: list[Any], tokenizer: Any, where: str) -> list[str]:
    """The text of every row; all conversations go through the chat template together, which is a stranger's program."""
    texts = [row["text"] if isinstance(row, dict) and isinstance(row.get("text"), str) else None for row in rows]
    talks = [at for at, text in enumerate(texts) if text is None]
    for at in talks:
        _require_messages(rows[at], tokenizer, where)
    if talks:
        try:
            rendered = render_with(tokenizer, [Conversation(rows[at]["messages"]) for at in talks])
        except TemplateFailedError as error:
            raise fail(
                "calibration/template",
                where,
                saw=f"the chat template fails: {error}",
                wanted="a template that renders these messages",
                help="bitwright doctor MODEL, or give rows a text column",
            ) from None
        for at, text in zip(talks, rendered, strict=True):
            texts[at] = text
    return [str(text) for text in texts]


def _require_messages(row: Any, tokenizer: Any, where: str) -> None:
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise fail(
            "calibration/row",
            where,
            saw=f"a row with {', '.join(map(str, row))[:80]}" if isinstance(row, dict) else f"a row that is {str(row)[:40]!r}",
            wanted="rows with a text or a messages column",
            help="rename the column",
        )
    if not tokenizer.chat_template:
        raise fail(
            "calibration/template",
            where,
            saw="chat messages, but the tokenizer has no chat template",
            wanted="plain text for a base model",
            help="give rows a text column",
        )
