"""A change of what a module does changes its hash, and so does one of a module that it takes something from."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitwright.host import logic
from bitwright.host.logic import logic_hash

USER = (
    '"""One."""\nfrom logical.used import twice\n\nLIMIT = 3\n\n\ndef f(x):\n    """Two."""\n    return min(twice(x), LIMIT)\n'
)
USED = "def twice(x):\n    return 2 * x\n"


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "logical").mkdir()
    (tmp_path / "logical" / "__init__.py").touch()

    def of(user: str = USER, used: str = USED) -> str:
        for name in [name for name in sys.modules if name.startswith("logical")]:
            del sys.modules[name]
        (tmp_path / "logical" / "user.py").write_text(user)
        (tmp_path / "logical" / "used.py").write_text(used)
        importlib.invalidate_caches()
        importlib.import_module("logical.user")
        logic._code.cache_clear()
        return logic_hash("logical.user", within="logical")

    yield of
    for name in [name for name in sys.modules if name.startswith("logical")]:
        del sys.modules[name]
    logic._code.cache_clear()


def test_only_what_a_module_does_counts(hashed: object) -> None:
    assert callable(hashed)
    before = hashed()
    assert hashed() == before
    assert hashed(user=USER.replace("Two.", "Other words.") + "\n# a comment\n") == before
    assert hashed(user=USER.replace("LIMIT = 3", "LIMIT = 4")) != before
    assert hashed(user=USER.replace("min(", "max(")) != before
    assert hashed(used=USED.replace("2 * x", "x + x")) != before


def test_a_constant_that_was_set_while_running_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = logic_hash("bitwright.measure.scores", within="bitwright.measure")
    monkeypatch.setattr(importlib.import_module("bitwright.measure.scores"), "SHORT", 5)
    assert logic_hash("bitwright.measure.scores", within="bitwright.measure") != before
