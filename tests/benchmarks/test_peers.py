"""The page about peers is what the data file says, and every adapter and environment that a row names exists."""

from pathlib import Path

import pytest

from benchmarks.peers import table
from benchmarks.peers.rows import OWN, ROWS

PEERS = Path(table.__file__).parent


def test_the_page_is_made_from_the_data() -> None:
    for name, text in table.pages(table.load()).items():
        assert (table.DOCS / name).read_text(encoding="utf-8") == text, "python -m benchmarks.peers.table"


def test_the_plots_show_the_data() -> None:
    lines = table.load()
    for model in {line["model"] for line in lines}:
        drawing = (table.DOCS / f"peers-{model}.svg").read_text(encoding="utf-8")
        own = [line for line in lines if line["model"] == model]
        points = table.plot(own)["layer"][0]["data"]["values"]
        assert len(points) == 2 * sum(table.measured(line) and not line["gguf"] for line in own) > 0
        for point in points:
            assert point["text"] in drawing, "python -m benchmarks.peers.table"


def test_ours_never_has_more_bytes_than_the_peer() -> None:
    compared = [line for line in table.load() if table.measured(line)]
    assert compared
    for line in compared:
        assert line["ours"]["nbytes"] <= line["nbytes"], line["label"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label)
def test_every_row_has_its_parts(row) -> None:  # type: ignore[no-untyped-def]
    assert (PEERS / "adapters" / f"{row.adapter}.py").is_file()
    assert row.environment == OWN or (PEERS / "requirements" / f"{row.environment}.txt").is_file()
