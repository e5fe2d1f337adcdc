"""Nothing of a person's is lost: what is in the way is refused, and results appear whole or not at all."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from bitwright.checkpoint import output
from bitwright.checkpoint.output import (
    MARK,
    Output,
    atomic_output,
    beside,
    owned,
    remove,
    require_apart,
    require_space,
    require_text_place,
    write_text,
)
from bitwright.errors import BitwrightError
from bitwright.plan import KNOWN_BY

OURS = json.dumps({"plan": {"schema": "bitwright.plan/3"}})
KINDS = pytest.mark.parametrize("name", ["out", "out.gguf"])


def is_file(name: str) -> bool:
    return name.endswith(".gguf")


def make(place: Path, text: str) -> None:
    """What a run leaves: the model and the texts that go with it."""
    model = place if place.suffix else place / "model.safetensors"
    model.write_text(text)
    for companion in ("bitwright.json", "report.json", "README.md"):
        beside(place, companion).write_text(OURS if companion == "bitwright.json" else text)


def found(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@KINDS
def test_it_appears_with_its_texts_and_nothing_else(tmp_path: Path, name: str) -> None:
    with atomic_output(tmp_path / name, is_file(name)) as place:
        make(place, "new")
        assert [path.name for path in tmp_path.iterdir()] == [f".{name}.partial"]
    stem = "out." if is_file(name) else "out/"
    model = "out.gguf" if is_file(name) else "out/model.safetensors"
    assert set(found(tmp_path)) == {model, *(f"{stem}{text}" for text in ("bitwright.json", "report.json", "README.md"))}


@KINDS
def test_a_failure_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(RuntimeError), atomic_output(tmp_path / name, is_file(name)) as place:
        make(place, "half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BitwrightError, match="output/write"), atomic_output(tmp_path / "out", is_file=False):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_real_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(BitwrightError, match="No space left"), atomic_output(tmp_path / "out", is_file=False) as place:
        os.symlink("/dev/full", place / "model.safetensors")
        (place / "model.safetensors").write_bytes(b"x" * 10**5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["bitwright.json", "report.json", "report.html", "README.md", "Modelfile"])
def test_no_text_of_a_person_is_overwritten(tmp_path: Path, text: str) -> None:
    theirs = tmp_path / f"out.{text}"
    theirs.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(BitwrightError, match="output/exists"), Output(tmp_path / "out.gguf", True, overwrite).claimed():
            pytest.fail("claimed")
    assert found(tmp_path) == {theirs.name: "mine"}
    with atomic_output(tmp_path / "out", is_file=False) as place:  # a directory has no texts beside it
        make(place, "new")


@pytest.mark.parametrize("name", ["out", "out.gguf", ".", "/"])
def test_no_help_tells_to_delete(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("x")
    (tmp_path / "out.gguf").write_text("x")
    with pytest.raises(BitwrightError) as caught, Output(Path(name), name == "out.gguf", True).claimed():
        pytest.fail("claimed")
    assert "rm" not in caught.value.finding.help.split()
    assert "overwrite" not in caught.value.finding.help
    assert found(tmp_path) == {"out/file": "x", "out.gguf": "x"}


@KINDS
def test_only_what_is_ours_is_replaced_and_only_when_asked(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    with atomic_output(out, is_file(name)) as place:
        make(place, "old")
    before = found(tmp_path)
    with pytest.raises(BitwrightError, match="output/exists") as caught, Output(out, is_file(name)).claimed():
        pytest.fail("claimed")
    assert "--overwrite" in caught.value.finding.help
    with pytest.raises(RuntimeError), Output(out, is_file(name), overwrite=True).claimed() as claim, claim.made() as place:
        make(place, "half")
        raise RuntimeError
    assert found(tmp_path) == before
    with Output(out, is_file(name), overwrite=True).claimed() as claim, claim.made() as place:
        make(place, "new")
    assert {text for text in found(tmp_path).values() if text != OURS} == {"new"}
    assert set(found(tmp_path)) == set(before)


def test_hidden_folders_of_a_person_are_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / ".out.partial"
    theirs.mkdir()
    (theirs / "thesis").write_text("x")
    with pytest.raises(BitwrightError, match="output/foreign"), Output(tmp_path / "out", False).claimed():
        pytest.fail("claimed")
    assert found(tmp_path) == {".out.partial/thesis": "x"}
    with owned(theirs, tmp_path / "out", ours=False):  # a work directory that was asked for
        assert (theirs / MARK).exists()


def _hold(out: Path, begun: str) -> None:
    with Output(out, out.suffix == ".gguf", overwrite=True).claimed() as claim, claim.made() as place:
        make(place, "half")
        Path(begun).touch()
        time.sleep(60)


@KINDS
def test_a_second_run_is_told_at_once_and_a_killed_one_leaves_no_trace(tmp_path: Path, name: str) -> None:
    out, begun = tmp_path / "place" / name, tmp_path / "begun"
    out.parent.mkdir()
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(out, str(begun)))
    process.start()
    try:
        while not begun.exists():
            assert process.is_alive()
            time.sleep(0.05)
        with pytest.raises(BitwrightError, match="output/busy"), Output(out, is_file(name)).claimed():
            pytest.fail("claimed")
    finally:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    assert [path.name for path in out.parent.iterdir()] == [f".{name}.partial"]
    with atomic_output(out, is_file(name)) as place:
        make(place, "new")
    assert {text for text in found(out.parent).values() if text != OURS} == {"new"}


@pytest.mark.parametrize("stop", range(5))
def test_killed_while_texts_are_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    """The next run knows which of them are its own."""
    out, real = tmp_path / "out.gguf", os.replace
    done: list[object] = []

    def replace(source: object, target: object) -> None:
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(target)
        real(source, target)  # type: ignore[arg-type]

    killed = stop < 4
    with monkeypatch.context() as patch:
        patch.setattr(output.os, "replace", replace)
        patch.setattr(output.shutil, "rmtree", lambda *_, **__: None)  # as if it had been SIGKILL
        try:
            with atomic_output(out, is_file=True) as place:
                make(place, "first")
        except KeyboardInterrupt:
            assert killed
    assert len(done) == min(stop, 4)
    with Output(out, True, overwrite=not killed).claimed() as claim, claim.made() as place:
        make(place, "second")
    assert {text for text in found(tmp_path).values() if text != OURS} == {"second"}


@pytest.mark.parametrize("end", ["stopped", "refused", "killed"])
def test_between_two_renames_what_was_to_be_replaced_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """At once after Ctrl-C and where the disk refuses, and with the next run after SIGKILL."""
    out, real = tmp_path / "out", os.rename
    with atomic_output(out, is_file=False) as place:
        make(place, "old")
    error = {"stopped": KeyboardInterrupt, "refused": BitwrightError, "killed": KeyboardInterrupt}[end]

    def rename(source: object, target: object) -> None:
        if target == out and str(source).endswith("made"):
            raise OSError(5, "Input/output error") if end == "refused" else KeyboardInterrupt
        real(source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(output.os, "rename", rename)
        if end == "killed":
            patch.setattr(output.shutil, "rmtree", lambda *_, **__: None)
            patch.setattr(Output, "_restore", lambda _: None)
        with pytest.raises(error), Output(out, False, overwrite=True).claimed() as claim, claim.made() as place:
            make(place, "new")
    assert out.exists() == (end != "killed")
    with pytest.raises(BitwrightError, match="output/exists"), Output(out, False).claimed():
        pytest.fail("claimed")
    assert {text for text in found(out).values() if text != OURS} == {"old"}


def test_errors_of_the_job_are_not_said_of_the_disk(tmp_path: Path) -> None:
    """What reading a source raises has nothing to do with the output."""
    with pytest.raises(FileNotFoundError), Output(tmp_path / "out", False).claimed():
        (tmp_path / "nothing").read_text()
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_apart_from_what_is_read_and_from_the_work(tmp_path: Path) -> None:
    source, work = tmp_path / "source", tmp_path / "work"
    source.mkdir()
    for out in (source, source / "out", source / "deep" / "out"):
        with pytest.raises(BitwrightError, match="output/source"):
            require_apart(out, [source], work)
    for out, place in ((work, work), (tmp_path / "out", tmp_path / "out" / "work")):
        with pytest.raises(BitwrightError, match="output/workdir"):
            require_apart(out, [source], place)
    require_apart(tmp_path / "out", [source, Path("owner/name")], work)
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(BitwrightError, match="output/source"):
        require_apart(tmp_path / "link" / "out", [source], work)
    with pytest.raises(BitwrightError, match="output/link"):
        Output(tmp_path / "link", False).require_place()


def test_places_of_texts(tmp_path: Path) -> None:
    require_text_place(tmp_path / "plan.json", KNOWN_BY)
    (tmp_path / "plan.json").write_text('{"schema": "bitwright.plan/3"}')
    require_text_place(tmp_path / "plan.json", KNOWN_BY)
    (tmp_path / "thesis.json").write_text('{"chapter": "how I made a bitwright.plan"}')
    for bad in (tmp_path / "thesis.json", tmp_path, Path("/dev/full"), tmp_path / "no" / "x", tmp_path / ("x" * 5000)):
        with pytest.raises(BitwrightError):
            require_text_place(bad, KNOWN_BY)
    for bad in (tmp_path / "no" / "x", tmp_path / ("x" * 5000), tmp_path):
        with pytest.raises(BitwrightError, match="output/write"):
            write_text(bad, "x")


def test_space_is_checked_up_front(tmp_path: Path) -> None:
    require_space(tmp_path / "x" / "y", 1000, "a test")
    with pytest.raises(BitwrightError, match="output/disk"):
        require_space(tmp_path, 10**18, "a test")


def test_what_was_made_can_be_made_again(tmp_path: Path) -> None:
    for name in ("out", "out.gguf"):
        with atomic_output(tmp_path / name, is_file(name)) as place:
            make(place, "uniform")
            remove(place)
            make(place, "other")
    assert "uniform" not in found(tmp_path).values()
