"""Where things are kept."""

import os
from pathlib import Path

import pytest

from bitwright.errors import BitwrightError
from bitwright.host.places import cache_dir


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BITWRIGHT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "bitwright"
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


@pytest.mark.parametrize("stated", ["", "cache"])
def test_a_cache_is_never_below_the_folder_that_one_stands_in(stated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITWRIGHT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", stated)
    assert cache_dir() == Path.home() / ".cache" / "bitwright"


def test_a_user_without_a_home_is_asked_for_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BITWRIGHT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what the system answers where there is no home
    with pytest.raises(BitwrightError, match="cache/no-home"):
        cache_dir()
