"""A conversation for a model without a chat template: the same text when it is learnt and when it is continued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def plain(messages: Sequence[Mapping[str, str]], end: str) -> tuple[str, list[tuple[int, int]]]:
    """Each question and a line's end, each answer and ``end``, the token that ends a text; and where the answers are.

    >>> plain([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}], "</s>")
    ('2+2?\\n4</s>', [(5, 10)])
    """
    text, answers = "", []
    for message in messages:
        begin, answered = len(text), message["role"] == "assistant"
        text += message["content"] + (end if answered else "\n")
        if answered:
            answers.append((begin, len(text)))
    return text, answers
