"""Answers side by side: what follows the first difference is marked, and nothing that a model says is markup."""

from bitwright.plan import NOISE_FLOOR
from bitwright.report.said import Said, as_html

SAID = Said(
    "Why <b>?",
    {NOISE_FLOOR: "It is blue today.", "stock": "It is green.", "ours": "It is blue today.", "more": "It is blue today. Yes"},
)


def test_the_first_word_that_differs() -> None:
    assert SAID.apart("stock") == ("It is ", "green.")
    assert SAID.apart("ours") == ("It is blue today.", "")
    assert SAID.apart("more") == ("It is blue today.", " Yes")
    assert Said("q", {NOISE_FLOOR: "a", "x": ""}).apart("x") == ("", "")


def test_the_page_marks_it() -> None:
    html = as_html([SAID], [], [NOISE_FLOOR, "stock", "ours"])
    assert "It is <mark>green.</mark>" in html
    assert html.count("<mark>") == 1
    assert "Why &lt;b&gt;?" in html
    assert as_html([], [], []) == ""
