"""Drawing cannot take a run with it, whatever stands in a label."""

import pytest

from bitwright.report import draw


def bars(label: str) -> dict[str, object]:
    values = [{"name": label, "size": 1}]
    encoding = {"x": {"field": "name", "type": "nominal"}, "y": {"field": "size", "type": "quantitative"}}
    return {"data": {"values": values}, "mark": "bar", "encoding": encoding}


@pytest.mark.parametrize("label", ["a\x00b", "a\x1bb", "\ud800", "\uffff", "<svg onload=x>", "日本"])
def test_any_label_is_drawn(label: str) -> None:
    assert all(drawing.startswith("<svg") for drawing in draw.svgs([bars("b"), bars(label)]))


def test_a_library_that_aborts_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "printable", lambda value: value)
    with pytest.raises(RuntimeError, match="exit code"):
        draw.svgs([bars("b"), bars("a\x00b")])
