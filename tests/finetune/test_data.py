"""Rows of every kind of file become the same conversations; what cannot be read is said in words."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from openpyxl import Workbook
from pyarrow import parquet
from transformers import LlamaConfig

from bitwright.data.rows import MOST_ROWS, read_rows
from bitwright.errors import BitwrightError
from bitwright.evaluate.talk import prompt_of
from bitwright.finetune.conversations import Talk, conversations, filled
from bitwright.finetune.preview import coloured, require_no_mistake, require_room, summary
from bitwright.finetune.tables import read_table
from bitwright.finetune.tokens import IGNORED, examples
from tests.conftest import byte_tokenizer

ROWS = [{"question": "What is 2 + 2?", "answer": "4"}, {"question": 'Say "hi", please', "answer": "hi"}]


def rule_of(call: Any) -> str:
    with pytest.raises(BitwrightError) as caught:
        call()
    return caught.value.finding.rule


def write_xlsx(path: Path, sheets: dict[str, list[list[Any]]]) -> None:
    book = Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)


def test_files_of_every_kind_hold_the_same_rows(tmp_path: Path) -> None:
    table = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    texts = {
        "a.csv": 'question,answer\nWhat is 2 + 2?,4\n"Say ""hi"", please",hi\n',
        "b.csv": 'question;answer\nWhat is 2 + 2?;4\n"Say ""hi"", please";hi\n',
        "c.tsv": "question\tanswer\nWhat is 2 + 2?\t4\n" + '"Say ""hi"", please"\thi\n',
        "d.jsonl": "\n".join(map(json.dumps, ROWS)),
        "e.json": json.dumps(ROWS),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "f.csv").write_text(texts["a.csv"], encoding="utf-8-sig")
    (tmp_path / "g.csv").write_text(texts["a.csv"], encoding="utf-16")
    (tmp_path / "i.jsonl").write_text(texts["d.jsonl"], encoding="utf-16")
    (tmp_path / "J.CSV").write_text(texts["a.csv"], encoding="utf-8")
    write_xlsx(tmp_path / "h.xlsx", {"empty": [], "rows": table})
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "k.parquet")
    for name in (*texts, "f.csv", "g.csv", "h.xlsx", "i.jsonl", "J.CSV", "k.parquet"):
        assert read_table(str(tmp_path / name)) == ROWS, name


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    for name, content in (
        ("empty.csv", b""),
        ("names.csv", b"a,b\n"),
        ("double.csv", b"a,a\n1,2\n"),
        ("short.csv", b"a,b\n1\n"),
        ("quote.csv", b'a,b\n"1,2\n'),
        ("latin.csv", "a,b\nä,ö\n".encode("latin-1")),
        ("broken.xlsx", b"PK\x03\x04 not a zip"),
        ("row.jsonl", b"[1]\n"),
        ("cut.jsonl", b'{"text": '),
        ("odd.csv", "a,b\n1,2\n".encode("utf-16") + b"x"),
    ):
        (tmp_path / name).write_bytes(content)
        assert rule_of(lambda name=name: read_table(str(tmp_path / name))) == "data/table", name
    for name in ("nothing.csv", "."):
        assert rule_of(lambda name=name: read_table(str(tmp_path / name))) == "data/file"
    (tmp_path / "mixed.csv").write_bytes(
        b"\xef\xbb\xbfquestion,answer\nCaf\xc3\xa9?,yes\nNa\xefve?,no\n"
    )  # UTF-8, then Latin-1
    with pytest.raises(BitwrightError) as caught:
        read_table(str(tmp_path / "mixed.csv"))
    assert caught.value.finding.saw == "line 3: no UTF-8 text after 'Na'"
    write_xlsx(tmp_path / "two.xlsx", {"one": [["a"], ["x"]], "other": [["a"], ["y"]]})
    assert rule_of(lambda: read_table(str(tmp_path / "two.xlsx"))) == "data/sheets"
    assert read_table(str(tmp_path / "two.xlsx"), "other") == [{"a": "y"}]
    assert rule_of(lambda: read_table(str(tmp_path / "two.xlsx"), "third")) == "data/table"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "messages"),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "ShareGPT"),
        ({"instruction": "Q", "input": "", "output": "A"}, "Alpaca"),
        ({"prompt": "Q", "completion": "A"}, "'prompt'"),
        ({"Question": "Q", "Answer": "A"}, "'Question'"),
    ],
)
def test_columns_are_found_by_their_names(row: dict[str, Any], words: str) -> None:
    (talk,), told = conversations([row])
    assert [(turn["role"], turn["content"]) for turn in talk.messages] == [("user", "Q"), ("assistant", "A")]
    assert words in told


@pytest.mark.parametrize(
    ("row", "roles", "question", "unread"),
    [
        ({"instruction": "Q", "context": "C", "response": "A", "category": "x"}, "ua", "Q\n\nC", "'category'"),  # Dolly
        ({"id": 1, "question": "Q", "context": "C", "answer": "A"}, "ua", "Q\n\nC", "'id'"),
        ({"system_prompt": "S", "question": "Q", "response": "A"}, "sua", "Q", ""),  # Orca
        ({"system": "S", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "sua", "Q", ""),
        ({"system": "", "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "ua", "Q", ""),
        (
            {
                "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}],
                "completion": [{"role": "assistant", "content": "A"}],
            },
            "sua",
            "Q",
            "",
        ),  # TRL
    ],
)
def test_no_column_is_lost_in_silence(row: dict[str, Any], roles: str, question: str, unread: str) -> None:
    (talk,), told = conversations([row])
    assert "".join(turn["role"][0] for turn in talk.messages) == roles
    assert next(turn["content"] for turn in talk.messages if turn["role"] == "user") == question
    assert talk.messages[-1]["content"] == "A"
    assert ("not read: " + unread in told) if unread else ("not read" not in told)


def test_rows_are_called_by_their_numbers_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\nQ,A\n,\nQ2,B\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"question": "Q", "answer": "A"}\n\n{"question": "Q2", "answer": "B"}\n')
    write_xlsx(tmp_path / "a.xlsx", {"rows": [["question", "answer"], ["Q", "A"], [None, None], ["Q2", "B"]]})
    for name, numbers in (("a.csv", [2, 4]), ("a.jsonl", [1, 3]), ("a.xlsx", [2, 4])):
        talks, _ = conversations(read_table(str(tmp_path / name)))
        assert [talk.row for talk in talks] == numbers, name
        assert [talk.at for talk in talks] == [0, 1]


def test_several_sheets_are_read_together(tmp_path: Path) -> None:
    path = tmp_path / "two.xlsx"
    write_xlsx(path, {"one": [["a", "b"], ["x", 1]], "no, more": [["b", "a"], [2, "y"]], "empty": [["a"]]})
    together = [{"a": "x", "b": "1"}, {"a": "y", "b": "2"}]
    assert read_table(str(path), "*") == together
    assert read_table(str(path), "no, more") == together[1:]
    write_xlsx(path, {"one": [["a", "b"], ["x", 1]], "two": [["b", "a"], [2, "y"]]})
    assert read_table(str(path), "one, two") == together
    assert rule_of(lambda: read_table(str(path), "one,three")) == "data/table"


def test_a_row_is_called_by_its_sheet_where_there_are_several(tmp_path: Path) -> None:
    write_xlsx(tmp_path / "two.xlsx", {"one": [["question", "answer"], ["x", "y"]], "two": [["question"], ["z"]]})
    with pytest.raises(BitwrightError, match="row 2 of sheet 'two'") as caught:
        conversations(read_table(str(tmp_path / "two.xlsx"), "*"))
    assert "no column 'answer'" in caught.value.finding.saw


def test_a_sheet_is_read_whole_whatever_it_says_of_its_size(tmp_path: Path) -> None:
    write_xlsx(tmp_path / "whole.xlsx", {"rows": [["question", "answer"], ["Q", "A"], ["Q2", "B"]]})
    with zipfile.ZipFile(tmp_path / "whole.xlsx") as whole, zipfile.ZipFile(tmp_path / "stale.xlsx", "w") as stale:
        for name in whole.namelist():
            stale.writestr(name, whole.read(name).replace(b'ref="A1:B3"', b'ref="A1:A2"'))
        assert b'ref="A1:B3"' in whole.read("xl/worksheets/sheet1.xml")
    assert read_table(str(tmp_path / "stale.xlsx")) == read_table(str(tmp_path / "whole.xlsx"))


def test_a_template_puts_columns_together_and_rows_may_make_one_conversation() -> None:
    rows = [{"a": "one", "b": "", "c": "A"}, {"a": "two", "b": "more", "c": "B"}]
    talks, _ = conversations(rows, "{a}[[\n\nContext: {b}]]", "c")
    assert [talk.messages[0]["content"] for talk in talks] == ["one", "two\n\nContext: more"]
    (whole,), _ = conversations(rows, "{a}", "c", together=2)
    assert [turn["content"] for turn in whole.messages] == ["one", "A", "two", "B"]
    assert filled("{a}[[ ({b})]]", {"a": 1, "b": None}) == "1"
    (whole,), _ = conversations([{"system": "Be kind.", "prompt": p, "answer": "A"} for p in "xy"], together=2)
    assert [turn["role"] for turn in whole.messages] == ["system", *["user", "assistant"] * 2], "it leads once"


def test_a_column_that_the_first_row_lacks_is_read(tmp_path: Path) -> None:
    rows = [{"instruction": "Say hi", "output": "hi"}, {"instruction": "Add", "input": "1+2", "output": "3"}]
    for given in (rows, rows[::-1]):
        talks, _ = conversations(given)
        assert {talk.messages[0]["content"] for talk in talks} == {"Say hi", "Add\n\n1+2"}
        talks, _ = conversations(given, "{instruction}[[ {input}]]", "output")
        assert {talk.messages[0]["content"] for talk in talks} == {"Say hi", "Add 1+2"}
    assert rule_of(lambda: conversations(rows, "{instruction} {input}", "output")) == "data/row"
    book = Workbook(write_only=True)  # which does not note how wide a sheet is: rows end with their last cell
    sheet = book.create_sheet("rows")
    for cells in (["instruction", "output", "input"], ["Say hi", "hi"], ["Add", "3", "1+2"]):
        sheet.append(cells)
    book.save(tmp_path / "a.xlsx")
    assert read_table(str(tmp_path / "a.xlsx")) == [dict.fromkeys(rows[1], "") | row for row in rows]


def test_nobody_learns_to_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\nQ,A\n,\nQ2,\n ,\t\n", encoding="utf-8")
    rows = read_table(str(tmp_path / "a.csv"))
    assert [row["question"] for row in rows] == ["Q", "Q2"]
    (talk,), told = conversations(rows)
    assert talk.messages[1]["content"] == "A"
    assert "1 rows with an empty answer are left out" in told
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": "{}"}}]}
    assert rule_of(lambda: conversations([{"messages": [{"role": "user", "content": "Q"}, call]}])) == "data/row"


def test_a_data_set_of_the_hub_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = [{"prompt": str(i), "completion": "x"} for i in range(MOST_ROWS + 5)]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: iter(stream))
    assert read_table("somebody/questions") == stream
    assert len(list(read_rows("somebody/questions"))) == MOST_ROWS  # of calibration


def test_columns_that_are_not_there_are_named() -> None:
    assert rule_of(lambda: conversations([{"x": "1", "y": "2"}])) == "data/columns"
    assert rule_of(lambda: conversations(ROWS, "{nothing}", "answer")) == "data/columns"
    assert rule_of(lambda: conversations(ROWS, "{question}")) == "data/template"
    assert rule_of(lambda: conversations([{"messages": [{"role": "robot", "content": "x"}]}])) == "data/row"
    assert rule_of(lambda: conversations([{"prompt": {"a": 1}, "completion": "x"}])) == "data/row"


def test_only_answers_and_their_ends_carry_loss() -> None:
    tokenizer = byte_tokenizer()
    talk = Talk(
        (
            {"role": "user", "content": "first question"},
            {"role": "assistant", "content": "first answer"},
            {"role": "user", "content": "second question"},
            {"role": "assistant", "content": "second answer"},
        )
    )
    (example,) = examples([talk], tokenizer, 500)
    learnt = [int(label) for label in example.labels if label != IGNORED]
    assert tokenizer.decode(learnt).count("answer") == 2
    assert "question" not in tokenizer.decode(learnt)
    assert tokenizer.eos_token_id in learnt
    after = [int(example.ids[i + 1]) for i in range(len(example.ids) - 1) if example.labels[i] != IGNORED]
    assert learnt == after  # each label is the token that follows
    (cut,) = examples([talk], tokenizer, 10)
    assert len(cut.ids) == 10
    assert torch.equal(cut.labels[:-1], example.labels[:9])
    assert cut.labels[-1] == IGNORED, "as a program that is given the text can tell"
    assert cut.n_cut == len(example.ids) - 10
    (text,) = examples([Talk(text="as it stands")], tokenizer, 500)
    assert text.n_labels == len(text.ids) - 1
    shown = coloured(example, tokenizer)
    marked = coloured(example, tokenizer, brackets=True).plain  # the template has no opening of an answer: the model writes it
    assert "«<s>assistant: first answer</s>»" in marked
    assert "first answer" in "".join(shown.plain[s.start : s.end] for s in shown.spans if "green" in str(s.style))


def test_silent_mistakes_stop_before_training() -> None:
    tokenizer = byte_tokenizer()
    ends = {int(tokenizer.eos_token_id)}
    talks, _ = conversations(ROWS)
    good = examples(talks, tokenizer, 500)
    require_no_mistake(good, tokenizer, ends, 500)
    assert "carry loss" in summary(good, 500)[0]
    assert rule_of(lambda: require_no_mistake(good[:1], tokenizer, ends, 500)) == "finetune/one-row"
    assert rule_of(lambda: require_no_mistake(examples(talks, tokenizer, 4), tokenizer, ends, 4)) == "finetune/nothing-learnt"
    assert rule_of(lambda: require_no_mistake(good, tokenizer, {7}, 500)) == "finetune/end-never-trained"
    assert rule_of(lambda: require_no_mistake(good, tokenizer, set(), 500)) == "finetune/no-end"
    bos = int(tokenizer.bos_token_id)
    double = [replace(e, ids=torch.cat([torch.tensor([bos, bos]), e.ids[2:]])) for e in good]
    assert rule_of(lambda: require_no_mistake(double, tokenizer, ends, 500)) == "finetune/double-bos"
    long = examples([Talk(text="word " * 100), Talk(text="word " * 100)], tokenizer, 20)
    assert rule_of(lambda: require_no_mistake(long, tokenizer, ends, 20)) == "finetune/most-are-cut"


def test_formulas_and_columns_without_names(tmp_path: Path) -> None:
    write_xlsx(tmp_path / "formula.xlsx", {"s": [["question", "answer"], ["1 + 1", "=1+1"]]})
    assert rule_of(lambda: read_table(str(tmp_path / "formula.xlsx"))) == "data/formula"
    write_xlsx(tmp_path / "error.xlsx", {"s": [["question", "answer"], ["1 / 0", "#DIV/0!"]]})
    assert rule_of(lambda: read_table(str(tmp_path / "error.xlsx"))) == "data/formula"
    write_xlsx(tmp_path / "gap.xlsx", {"s": [["question", None, "answer"], ["q", "note", "a"], ["r", None, None]]})
    rows = read_table(str(tmp_path / "gap.xlsx"))
    assert rows == [{"question": "q", "answer": "a"}, {"question": "r", "answer": ""}]


def test_tokens_and_positions_that_the_model_does_not_have_are_refused() -> None:
    talks, _ = conversations(ROWS)
    found = examples(talks, byte_tokenizer(), 500)
    longest, most = max(len(e.ids) for e in found), max(int(e.ids.max()) for e in found)
    require_room(found, LlamaConfig(vocab_size=most + 1, max_position_embeddings=longest))
    for config, rule in (
        (LlamaConfig(vocab_size=most, max_position_embeddings=longest), "unknown-token"),
        (LlamaConfig(vocab_size=most + 1, max_position_embeddings=longest - 1), "too-long"),
    ):
        assert rule_of(lambda config=config: require_room(found, config)) == f"finetune/{rule}"


def test_without_a_template_an_answer_ends_as_texts_do() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    talks, _ = conversations(ROWS)
    first = examples(talks, tokenizer, 500)[0]
    assert tokenizer.decode(first.ids) == f"What is 2 + 2?\n4{tokenizer.eos_token}"
    assert tokenizer.decode(first.labels[first.labels != IGNORED]) == f"4{tokenizer.eos_token}"


@pytest.mark.parametrize("templated", [True, False])
def test_a_question_is_asked_as_it_was_learnt(templated: bool) -> None:
    tokenizer = byte_tokenizer()
    if not templated:
        tokenizer.chat_template = None
    roles = ("system", "user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": f"{role} says {i}"} for i, role in enumerate(roles)]
    (learnt,) = examples([Talk(tuple(messages))], tokenizer, 500)
    for asked in (2, 4):
        ids = prompt_of(messages[:asked], tokenizer, 500).ids.tolist()
        assert learnt.ids[: len(ids)].tolist() == ids
        assert learnt.labels[len(ids) - 1] != IGNORED


def test_a_row_of_a_million_letters_costs_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text(f"question,answer\nQ,A\n{'word ' * 200_000},B\nQ2,C\nQ3,D\n", encoding="utf-8")
    talks, _ = conversations(read_table(str(tmp_path / "long.csv")))
    found = examples(talks, byte_tokenizer(), 64)
    assert [e.n_labels > 0 for e in found] == [True, False, True, True]
    assert len(found[1].ids) == 64
    lines = summary(found, 64)
    assert any("1 texts are cut" in line for line in lines)
    assert any("row 3" in line for line in lines)
    require_no_mistake(found, byte_tokenizer(), {int(byte_tokenizer().eos_token_id)}, 64)
