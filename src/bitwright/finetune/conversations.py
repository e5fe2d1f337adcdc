"""From rows to conversations: columns are found by their names, or put together by a template (no torch)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bitwright.errors import BitwrightError, fail
from bitwright.finetune.tables import Row

PROMPTS = ("prompt", "question", "instruction", "query", "input")
ANSWERS = ("completion", "answer", "response", "output")
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}  # of ShareGPT
ROLES = ("system", "user", "assistant", "tool")
FIELD, OPTIONAL = re.compile(r"\{([^{}]+)\}"), re.compile(r"\[\[(.*?)\]\]", re.DOTALL)


@dataclass(frozen=True)
class Talk:
    """One conversation to learn from: messages with ``role`` and ``content``; or ``text`` that is learnt as it stands."""

    messages: tuple[dict[str, str], ...] = ()
    text: str = ""
    row: int = 0  # in the file, from one


@dataclass(frozen=True)
class Mapping:
    """How rows are read: in words for people, and as a function that gives the turns of one row."""

    words: str
    read: Callable[[Row], list[dict[str, str]] | str]


def conversations(rows: list[Row], template: str = "", answer: str = "", together: int = 1) -> tuple[list[Talk], str]:
    """A conversation for every ``together`` rows, and how the columns were read, in words.

    ``template``: the question, such as ``{instruction}[[ Context: {context}]]``; what stands in [[ ]] vanishes where one of its
    cells is empty. ``answer``: the column with the answer. Raises BitwrightError for columns that are not there and rows that
    are not of their kind.
    """
    mapping = _by_template(rows, template, answer) if template or answer else _found(rows)
    talks, n_silent = [], 0
    numbered = list(enumerate(rows, 1))
    for group in (numbered[start : start + together] for start in range(0, len(rows), together)):
        turns: list[dict[str, str]] = []
        for number, row in group:
            try:
                read = mapping.read(row)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise _bad_row(number, row, mapping, error) from None
            if isinstance(read, str):
                talks.append(Talk(text=read, row=number))
            elif any(turn["role"] == "assistant" and not turn["content"].strip() for turn in read):
                n_silent += 1  # it would be learnt to say nothing
            else:
                turns += read
        if turns:
            talks.append(Talk(tuple(turns), row=group[0][0]))
    return talks, mapping.words + (f"; {n_silent} rows with an empty answer are left out" if n_silent else "")


def _found(rows: list[Row]) -> Mapping:
    """The mapping that the names of the columns suggest."""
    names = {name.lower(): name for name in _columns(rows)}
    if "messages" in names:
        return Mapping("messages, with role and content", lambda row: [_turn(turn) for turn in row[names["messages"]]])
    if "conversations" in names:
        turns = names["conversations"]
        return Mapping("conversations, with from and value (ShareGPT)", lambda row: [_shared(turn) for turn in row[turns]])
    prompt = next((names[name] for name in PROMPTS if name in names), None)
    reply = next((names[name] for name in ANSWERS if name in names), None)
    if "instruction" in names and reply:
        question, more = names["instruction"], names.get("input")
        words = f"{question!r}" + (f", and {more!r} where it is not empty" if more else "")
        template = "{" + question + "}" + ("[[\n\n{" + more + "}]]" if more else "")
        return Mapping(f"question: {words}; answer: {reply!r} (Alpaca)", lambda row: _pair(filled(template, row), row[reply]))
    if prompt and reply:
        return Mapping(f"question: {prompt!r}; answer: {reply!r}", lambda row: _pair(row[prompt], row[reply]))
    if "text" in names:
        return Mapping(f"{names['text']!r}, as it stands", lambda row: _words(row[names["text"]]))
    raise fail(
        "data/columns",
        "the columns",
        saw=", ".join(map(repr, _columns(rows))) or "none",
        wanted="messages, conversations, text, or a question (prompt, instruction) and an answer (completion, output)",
        help="--template '{column} ...' --answer COLUMN",
    )


def _by_template(rows: list[Row], template: str, answer: str) -> Mapping:
    if not template or not answer:
        raise fail(
            "data/template",
            "--template" if template else "--answer",
            saw="one without the other",
            wanted="a template for the question and the column of the answer",
            help="--template '{instruction}' --answer output",
        )
    columns = _columns(rows)
    missing = [name for name in (*FIELD.findall(template), answer) if name not in columns]
    if missing:
        raise fail(
            "data/columns",
            "--template, --answer",
            saw=f"no column {', '.join(map(repr, missing))}",
            wanted=f"columns of the file: {', '.join(map(repr, columns))}",
            help="check the names; they are read as they are written",
        )
    return Mapping(f"question: {template!r}; answer: {answer!r}", lambda row: _pair(filled(template, row), row[answer]))


def _columns(rows: list[Row]) -> list[str]:
    """The names of all columns: a row of JSON may leave out what it has nothing for."""
    return list(dict.fromkeys(name for row in rows for name in row if isinstance(name, str)))


def filled(template: str, row: Row) -> str:
    """``template`` with the cells of ``row``. Raises KeyError for one that is not there, outside of [[ ]].

    >>> filled("{a}[[, and {b}]]", {"a": "one", "b": "two"}), filled("{a}[[, and {b}]]", {"a": "one", "b": ""})
    ('one, and two', 'one')
    """

    def optional(match: re.Match[str]) -> str:
        inner = match[1]
        return inner if all(_words(row.get(name)).strip() for name in FIELD.findall(inner)) else ""

    return FIELD.sub(lambda match: _words(row[match[1]]), OPTIONAL.sub(optional, template))


def _pair(question: Any, answer: Any) -> list[dict[str, str]]:
    return [{"role": "user", "content": _words(question)}, {"role": "assistant", "content": _words(answer)}]


def _turn(turn: Any) -> dict[str, str]:
    if turn["role"] not in ROLES:
        raise ValueError(f"role {turn['role']!r}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise ValueError("a call of a tool, which is not learnt")
    content = turn["content"]
    if isinstance(content, list):  # of text and of places for images
        content = " ".join(part["text"] for part in content if part.get("type") != "image")
    return {"role": turn["role"], "content": _words(content)}


def _shared(turn: Any) -> dict[str, str]:
    return {"role": SPEAKERS[turn["from"]], "content": _words(turn["value"])}


def _words(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, (dict, list)):
        raise ValueError(f"a {type(cell).__name__} where text is wanted")
    return str(cell)


def _bad_row(number: int, row: Row, mapping: Mapping, error: Exception) -> BitwrightError:
    return fail(
        "data/row",
        f"row {number}",
        saw=f"{type(error).__name__}: {error}; {str(row)[:80]}",
        wanted=f"a row with {mapping.words}",
        help="repair the row or remove it",
    )
