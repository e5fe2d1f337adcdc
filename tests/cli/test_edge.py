"""What nobody foresaw leaves the program in a few words, its traceback in a file."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bitwright.cli import common
from bitwright.cli.main import app


@pytest.mark.parametrize(("error", "code"), [(ZeroDivisionError("by \x1b[2J zero"), 70), (KeyboardInterrupt(), 130)])
def test_no_traceback_on_the_terminal(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("bitwright.diagnose.examine", fails)
    result = CliRunner().invoke(app, ["doctor", "."])
    assert result.exit_code == code
    assert "Traceback" not in result.stderr
    assert "\x1b" not in result.stderr
    if code == common.INTERNAL:
        kept = Path(re.search(r"report it, with (\S+\.txt)", result.stderr)[1])  # type: ignore[index]
        assert "ZeroDivisionError" in kept.read_text()
        kept.unlink()
    else:
        assert result.stderr.strip().count("\n") == 0
