"""What the tests of training share: a table of sums."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A .csv file of thirty questions and answers."""
    path = tmp_path_factory.mktemp("data") / "sums.csv"
    rows = [f"What is {a} + {b}?,It is {a + b}." for a in range(6) for b in range(5)]
    path.write_text("question,answer\n" + "\n".join(rows), encoding="utf-8")
    return str(path)
