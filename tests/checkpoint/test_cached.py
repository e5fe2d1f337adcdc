"""The cache heals: what is damaged is made again, and two first uses make one thing."""

import multiprocessing
import time
from pathlib import Path

import pytest

from bitwright.checkpoint.cached import MANIFEST, is_whole, kept_folder
from bitwright.errors import BitwrightError


def fill(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("harm", ["cut", "gone", "more", "manifest"])
def test_a_damaged_folder_is_made_again(tmp_path: Path, harm: str) -> None:
    place = tmp_path / "cache" / "model"
    assert kept_folder(place, fill) == place
    assert kept_folder(place, lambda _: pytest.fail("it is there")) == place
    if harm == "cut":
        (place / "model.safetensors").write_bytes(b"x" * 10)
    elif harm == "gone":
        (place / "config.json").unlink()
    elif harm == "more":
        (place / "adapter.bin").write_bytes(b"x")
    else:
        (place / MANIFEST).write_text("{")
    assert not is_whole(place)
    kept_folder(place, fill)
    assert is_whole(place)
    assert (place / "model.safetensors").stat().st_size == 1000


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        fill(folder)
        raise ValueError("no model")

    with pytest.raises(ValueError, match="no model"):
        kept_folder(tmp_path / "model", fails)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def _slowly(folder: Path) -> None:
    with open(folder.parent / "made", "a", encoding="utf-8") as file:
        file.write("x")
    time.sleep(0.5)
    fill(folder)


def _use(place: Path) -> None:
    assert is_whole(kept_folder(place, _slowly))


def test_two_first_uses_make_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    users = [context.Process(target=_use, args=(tmp_path / "model",)) for _ in range(2)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert [user.exitcode for user in users] == [0, 0]
    assert (tmp_path / "made").read_text() == "x"


def test_a_cache_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BitwrightError, match="output/write"):
        kept_folder(tmp_path / "file" / "model", fill)
