"""What of a conversation is shown to a model."""

from typing import Any

import pytest

from bitwright.evaluate.talk import prompt_of

TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second question"},
    {"role": "assistant", "content": "second answer"},
    {"role": "user", "content": "third question"},
]


def shown(tokenizer: Any, longest: int) -> str:
    ids = prompt_of(TALK, tokenizer, longest).ids
    assert len(ids) <= longest
    return str(tokenizer.decode(ids))


def test_the_oldest_messages_make_room(tokenizer: Any) -> None:
    n_all = prompt_of(TALK, tokenizer, 10_000).n_tokens
    assert "first question" in shown(tokenizer, n_all)
    shorter = shown(tokenizer, n_all - 1)
    assert shorter.startswith("<s>system: Be short.</s><s>user: second question</s>")
    assert shorter.endswith("third question</s>")
    least = len(prompt_of([TALK[0], TALK[-1]], tokenizer, 10_000).ids)
    assert shown(tokenizer, least) == "<s>system: Be short.</s><s>user: third question</s>"


@pytest.mark.parametrize("longest", [2, 5])
def test_a_question_that_is_too_long_by_itself_keeps_its_end_and_bos(tokenizer: Any, longest: int) -> None:
    text = shown(tokenizer, longest)
    assert text.startswith("<s>")
    assert text.endswith("</s>")
