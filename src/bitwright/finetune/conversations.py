"""From rows to conversations: columns are found by their names, or put together by a template (no torch)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitwright.errors import BitwrightError, fail
from bitwright.finetune.rows import number_of

PROMPTS = ("instruction", "prompt", "question", "query", "input")  # names of columns, in lower case, the first one counts
MORE = ("input", "context")  # what a question is about
ANSWERS = ("completion", "answer", "response", "output")
SYSTEMS = ("system", "system_prompt")
IMAGES = ("image", "images")  # which another reader takes
MOST_NAMED = 8  # columns
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}  # of ShareGPT
ROLES = ("system", "user", "assistant", "tool")
Row = Mapping[str, Any]
FIELD, OPTIONAL = re.compile(r"\{([^{}]+)\}"), re.compile(r"\[\[(.*?)\]\]", re.DOTALL)


@dataclass(frozen=True)
class Talk:
    """One conversation to learn from: messages with ``role`` and ``content``; or ``text`` that is learnt as it stands."""

    messages: tuple[dict[str, str], ...] = ()
    text: str = ""
    row: int = 0  # in the file, as spreadsheets and editors count
    at: int = 0  # of the first row, among all


@dataclass(frozen=True)
class Reading:
    """How rows are read: in words for people, the columns that are, and a function that gives the turns of one row."""

    words: str
    columns: tuple[str, ...]
    read: Callable[[Row], list[dict[str, str]] | str]


def conversations(rows: Sequence[Row], template: str = "", answer: str = "", together: int = 1) -> tuple[list[Talk], str]:
    """A conversation for every ``together`` rows, and how the columns were read, in words.

    ``template``: the question, such as ``{instruction}[[ Context: {context}]]``; what stands in [[ ]] vanishes where one of its
    cells is empty. ``answer``: the column with the answer. Raises BitwrightError for columns that are not there and rows that
    are not of their kind.
    """
    reading = _by_template(rows, template, answer) if template or answer else _found(rows)
    talks, n_silent = [], 0
    placed = [(at, number_of(row, at + 1), row) for at, row in enumerate(rows)]
    for group in (placed[start : start + together] for start in range(0, len(rows), together)):
        turns: list[dict[str, str]] = []
        for at, number, row in group:
            try:
                read = reading.read(row)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise _bad_row(number, row, reading, error) from None
            if isinstance(read, str):
                talks.append(Talk(text=read, row=number, at=at))
            elif any(turn["role"] == "assistant" and not turn["content"].strip() for turn in read):
                n_silent += 1  # it would be learnt to say nothing
            else:
                turns += [turn for turn in read if not turns or turn["role"] != "system"]  # which leads once
        if turns:
            talks.append(Talk(tuple(turns), row=group[0][1], at=group[0][0]))
    return talks, "; ".join(filter(None, (reading.words, _unread(rows, reading), _silent(n_silent))))


def _silent(count: int) -> str:
    return f"{count} rows with an empty answer are left out" if count else ""


def _unread(rows: Sequence[Row], reading: Reading) -> str:
    """The columns of which nothing is learnt, in words."""
    names = [repr(name) for name in _columns(rows) if name not in reading.columns and name.lower() not in IMAGES]
    shown = names[:MOST_NAMED] + [f"{len(names) - MOST_NAMED} more"] * (len(names) > MOST_NAMED)
    return f"not read: {', '.join(shown)}" if names else ""


def _found(rows: Sequence[Row]) -> Reading:
    """The reading that the names of the columns suggest."""
    names = {name.lower(): name for name in _columns(rows)}

    def first(known: tuple[str, ...], but: str | None = None) -> str | None:
        return next((names[name] for name in known if name in names and names[name] != but), None)

    system, question, reply = first(SYSTEMS), first(PROMPTS), first(ANSWERS)
    said = f"; system: {system!r}" if system else ""
    if "messages" in names:
        return _of_turns("messages, with role and content" + said, names["messages"], system, _turn)
    if "conversations" in names:
        words = "conversations, with from and value (ShareGPT)"
        return _of_turns(words + said, names["conversations"], system, _shared)
    if question and reply:
        more = first(MORE, but=question)
        words = f"question: {question!r}" + (f", and {more!r} where it is not empty" if more else "") + f"; answer: {reply!r}"
        template = "{" + question + "}" + ("[[\n\n{" + more + "}]]" if more else "")
        kind = " (Alpaca)" if question.lower() == "instruction" else ""
        used = tuple(filter(None, (question, more, reply, system)))

        def pair(row: Row) -> list[dict[str, str]]:
            asked = row[question] if isinstance(row[question], list) else filled(template, row)
            return _led(row, system) + _pair(asked, row[reply])

        return Reading(words + said + kind, used, pair)
    if "text" in names:
        text = names["text"]
        return Reading(f"{text!r}, as it stands", (text,), lambda row: _words(row[text]))
    raise fail(
        "data/columns",
        "the columns",
        saw=", ".join(map(repr, _columns(rows))) or "none",
        wanted="messages, conversations, text, or a question (prompt, instruction) and an answer (completion, output)",
        help="--template '{column} ...' --answer COLUMN",
    )


def _of_turns(words: str, column: str, system: str | None, turn: Callable[[Any], dict[str, str]]) -> Reading:
    """Of rows that hold whole conversations, each part of which ``turn`` reads."""
    used = (column, system) if system else (column,)
    return Reading(words, used, lambda row: _led(row, system) + [turn(one) for one in row[column]])


def _by_template(rows: Sequence[Row], template: str, answer: str) -> Reading:
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
    words, used = f"question: {template!r}; answer: {answer!r}", (*FIELD.findall(template), answer)
    return Reading(words, used, lambda row: _pair(filled(template, row), row[answer]))


def _columns(rows: Sequence[Row]) -> list[str]:
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
    """A question and its answer; either may be messages already, as TRL has them."""
    return [*_said("user", question), *_said("assistant", answer)]


def _said(role: str, cell: Any) -> list[dict[str, str]]:
    return [_turn(turn) for turn in cell] if isinstance(cell, list) else [{"role": role, "content": _words(cell)}]


def _led(row: Row, system: str | None) -> list[dict[str, str]]:
    """What the column ``system`` says before the first turn, where it says something."""
    words = _words(row.get(system)) if system else ""
    return [{"role": "system", "content": words}] if words.strip() else []


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


def _bad_row(number: int, row: Row, reading: Reading, error: Exception) -> BitwrightError:
    sheet = getattr(row, "sheet", "")
    told = (
        f"no column {error}" if isinstance(error, KeyError) and error.args[0] not in row else f"{type(error).__name__}: {error}"
    )
    return fail(
        "data/row",
        f"row {number}" + (f" of sheet {sheet!r}" if sheet else ""),
        saw=f"{told}; {str(row)[:80]}",
        wanted=f"a row with {reading.words}",
        help="repair the row or remove it",
    )
