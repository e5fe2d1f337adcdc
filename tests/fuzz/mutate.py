"""Mutations: of bytes, and of the values in a JSON text."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 10**6, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), ""),
    *("2", "x" * 5000, "../../etc/passwd", "\x1b[2J", "\ud800", "日本", [], {}, [[]], [None], [0], ["a"], {"a": 1}, [1] * 50),
)
DEEP = "[" * 20_000 + "]" * 20_000
BYTES = (
    b"\x00",
    b"\xff",
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\xff" * 8,
    b"{",
    b"}",
    b'"',
    b"[",
    b"\\u0000",
    b"\xef\xbb\xbf",
)


def of_bytes(data: bytes, chance: random.Random) -> bytes:
    """``data`` with some bytes changed, put in, left out or repeated, or cut short."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at, what = chance.randrange(len(found) + 1), chance.randrange(6)
        if what == 0 and at < len(found):
            found[at] = chance.randrange(256)
        elif what == 1 and at < len(found):
            found[at] ^= 1 << chance.randrange(8)
        elif what == 2:
            found[at:at] = chance.choice(BYTES)
        elif what == 3:
            del found[at : at + chance.choice((1, 2, 8, 64))]
        elif what == 4:
            found[at : at + 8] = chance.choice(BYTES)
        elif chance.random() < 0.3:
            del found[at:]
        else:
            found[at:at] = found[at : at + chance.choice((4, 16, 256))]
    return bytes(found)


def of_json(value: Any, chance: random.Random) -> bytes:
    """``value`` as JSON with some of its parts replaced, left out, or moved."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        value = _changed(value, chance)
    text = json.dumps(value)
    luck = chance.random()
    if luck < 0.01:
        text = text.replace("{", '{"deep": ' + DEEP + ", ", 1)
    elif luck < 0.02:
        return text.encode("utf-16")
    elif luck < 0.05:
        return of_bytes(text.encode(), chance)
    return text.encode()


def _changed(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        luck = chance.random()
        if luck < 0.1:
            del value[name]
        elif luck < 0.15:
            value[chance.choice(list(value))] = copy.deepcopy(value[name])
        elif luck < 0.18:
            value[chance.choice(("", "x" * 3000, "a/b", "model.embed_tokens.weight"))] = copy.deepcopy(value[name])
        else:
            value[name] = _changed(value[name], chance)
        return value
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        if chance.random() < 0.15:
            del value[at]
        else:
            value[at] = _changed(value[at], chance)
        return value
    return copy.deepcopy(chance.choice(ODD))
