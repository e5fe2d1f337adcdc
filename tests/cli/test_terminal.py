"""What a person sees on a terminal of 80 columns: whole lines, nothing of libraries, and what to type next."""

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import Build, Shell
from tests.terminal import NOISE, TMUX, Terminal

SRC = str(Path(__file__).parents[2] / "src")
SMALL = "--budget +40% --sequences 8 --length 32 --dtype float32 --no-compare"


@pytest.mark.skipif(TMUX is None, reason="no tmux here")
def test_a_run_on_80_columns(build: Build, tmp_path: Path) -> None:
    source = build("llama")
    (tmp_path / "model").symlink_to(source)
    run = f"{sys.executable} -m bitwright quantize model out {SMALL}"
    threads = os.environ.get("OMP_NUM_THREADS", "")
    with Terminal(tmp_path, PYTHONPATH=SRC, HF_HUB_OFFLINE="1", OMP_NUM_THREADS=threads) as terminal:
        terminal.begin(run)
        terminal.wait_for(" left in all")
        terminal.interrupt()
        assert terminal.end() == 130
        unbroken = "".join(terminal.text().split())  # a line of the terminal ends where the window does
        assert "Thesamecommandgoesonfromthere;todiscardwhatisfinished:rm-r" in unbroken
        terminal.run("clear && tmux clear-history")
        assert terminal.run(run) == 0
        shown = terminal.text()
    assert not [word for word in NOISE if word in shown]
    assert all(len(line) <= 80 for line in shown.splitlines())
    lines = [line for line in shown.splitlines() if line.strip()]
    title = next(line for line in lines if "KL nats" in line)
    assert "top-1" in title  # the table is whole
    assert "...." not in shown
    assert "…" not in shown
    assert [line.split()[0] for line in lines[-4:-1]] == ["from", "model", "tokenizer"]  # they load the result


def test_what_is_piped_has_no_colours_and_tells_how_far_it_is(
    build: Build, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ("quantize", str(build("llama")), "out", *SMALL.split())
    planned = shell(*words, "--dry-run", cwd=tmp_path)
    for stage in ("run the model", "draw labels", "measure and round", "write files", "compare with 16 bit", "in all"):
        assert stage in planned.stdout + planned.stderr
    done = shell(*words, cwd=tmp_path)
    shown = planned.stdout + planned.stderr + done.stdout + done.stderr
    assert (planned.returncode, done.returncode) == (0, 0), shown
    assert "\x1b" not in shown
    assert not [word for word in NOISE if word in shown]
    assert all(len(line) <= 80 for line in planned.stdout.splitlines())
    stages = [line for line in done.stderr.splitlines() if " of " in line]
    assert any("measure and round, 0 of 2, about" in line for line in stages)
    assert any("compare with 16 bit" in line for line in stages)
