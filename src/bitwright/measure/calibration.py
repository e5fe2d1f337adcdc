"""Calibration text as token sequences, cut into folds that are used for one purpose each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import BitwrightError, fail

MIN_SEQUENCES = 6  # two per fold: below that no standard error exists
SHARES = (0.25, 0.125)  # of the sequences that choose and that predict; the rest round


@dataclass(frozen=True)
class Folds:
    """Token sequences [S, T], separate for rounding, for choosing formats and for predicting the damage of the choice."""

    rounding: Tensor
    choosing: Tensor
    predicting: Tensor
    source: str

    @property
    def n_tokens(self) -> int:
        return int(self.rounding.shape[1])

    @property
    def scoring(self) -> Tensor:
        return torch.cat([self.choosing, self.predicting])

    @property
    def all(self) -> Tensor:
        return torch.cat([self.rounding, self.choosing, self.predicting])

    @property
    def key(self) -> str:
        digest = hashlib.sha256(self.all.to(torch.int64).numpy().tobytes())
        digest.update(str([len(self.rounding), len(self.choosing), len(self.predicting)]).encode())
        return digest.hexdigest()


def fold(ids: Tensor, source: str, seed: int) -> Folds:
    """Shuffle sequences [S, T] and cut them by SHARES: rounding gets what choosing and predicting leave."""
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    ids = ids[order]
    choosing, predicting = (max(2, round(len(ids) * share)) for share in SHARES)
    rounding = len(ids) - choosing - predicting
    return Folds(ids[:rounding], ids[rounding : rounding + choosing], ids[rounding + choosing :], source)


def sequences_of(
    texts: Iterable[str], tokenizer: Any, count: int, length: int, where: str, least: int = MIN_SEQUENCES
) -> Tensor:
    """``count`` sequences [count, length] taken evenly from the joined texts; each opens with BOS where the tokenizer adds it.

    Raises BitwrightError when the texts hold no token or fewer than ``least`` sequences; between that and ``count`` all
    there are are returned.
    """
    bos = bos_prefix(tokenizer)
    joined = "\n\n".join(texts)
    body = tokenizer(joined, add_special_tokens=False, verbose=False).input_ids
    if not body:
        raise fail(
            "calibration/empty",
            where,
            saw="no text",
            wanted="text to calibrate on",
            help="name a file with text, or leave --calibration out",
        )
    step = length - len(bos)
    available = len(body) // step
    if available < least:
        raise fail(
            "calibration/short",
            where,
            saw=f"{len(body)} tokens, {available} sequences of {length}",
            wanted=f"at least {least * length} tokens",
            help=f"add text, or shorten the sequences: --length {max(16, len(body) // least)}",
        )
    count = min(count, available)
    starts = [available * i // count * step for i in range(count)]
    return torch.tensor([bos + body[s : s + step] for s in starts])


def bos_prefix(tokenizer: Any) -> list[int]:
    """[BOS] where the tokenizer itself puts one before a text, else []."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a").input_ids[:1] == [bos] else []


def read_texts(source: str, tokenizer: Any) -> list[str]:
    """Texts of a .txt, .jsonl or .parquet file, or a datasets id: column ``text``, or ``messages`` by the chat template."""
    return [_text_of_row(row, tokenizer, source) for row in _rows(source)]


def read_domains(source: str, tokenizer: Any) -> dict[str, list[str]]:
    """The same texts by the column ``domain`` of their rows; all under "" unless every row names one."""
    rows = list(_rows(source))
    named = all(isinstance(row, dict) and isinstance(row.get("domain"), str) for row in rows)
    domains: dict[str, list[str]] = {}
    for row in rows:
        domains.setdefault(row["domain"] if named else "", []).append(_text_of_row(row, tokenizer, source))
    return domains


def _rows(source: str) -> Iterable[Any]:
    path = Path(source).expanduser()
    if path.is_file():
        readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
        return readers.get(path.suffix, _plain_rows)(path)
    if path.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise fail(
            "calibration/source",
            source,
            saw="no such file",
            wanted="a .txt, .jsonl or .parquet file, a datasets id (owner/name), self or documentation",
            help="check the path, or leave --calibration out",
        )
    return _hub_rows(source)


def _plain_rows(path: Path) -> Iterable[Any]:
    return [{"text": path.read_text(encoding="utf-8", errors="replace")}]


def _jsonl_rows(path: Path) -> Iterable[Any]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                raise fail(
                    "calibration/jsonl",
                    f"{path}:{number}",
                    saw=line[:60],
                    wanted="one JSON object per line",
                    help="repair the line or remove it",
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
    return iter(table.to_pylist())


def _hub_rows(name: str) -> Iterable[Any]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise _needs("datasets", name) from None
    try:
        stream = load_dataset(name, split="train", streaming=True)
        return [row for row, _ in zip(stream, range(2000), strict=False)]
    except Exception as error:
        raise fail(
            "calibration/hub",
            name,
            saw=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            wanted="a data set with a train split that can be reached",
            help="name a local file",
        ) from error


def _needs(package: str, where: object) -> BitwrightError:
    return fail(
        "calibration/package",
        where,
        saw=f"{package} is not installed",
        wanted=f"{package} reads this source",
        help=f"pip install {package}",
    )


def _text_of_row(row: Any, tokenizer: Any, where: str) -> str:
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return str(row["text"])
    if isinstance(row, dict) and isinstance(row.get("messages"), list):
        if not tokenizer.chat_template:
            raise fail(
                "calibration/template",
                where,
                saw="chat messages, but the tokenizer has no chat template",
                wanted="plain text for a base model",
                help="give rows a text column",
            )
        return str(tokenizer.apply_chat_template(row["messages"], tokenize=False))
    raise fail(
        "calibration/row",
        where,
        saw=f"a row with {list(row) if isinstance(row, dict) else type(row).__name__}",
        wanted="rows with a text or a messages column",
        help="rename the column",
    )
