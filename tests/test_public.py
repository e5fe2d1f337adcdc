"""The names that a Python user sees: listed, documented, short to look at, and there on systems without Unix modules."""

import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import bitwright
from bitwright.report.report import Report
from tests.conftest import TINY, Build

FUNCTIONS = [name for name in bitwright.__all__ if inspect.isfunction(getattr(bitwright, name))]
UNIX = ("resource", "fcntl", "termios", "pwd", "grp", "tty", "pty")
HIDE = f"""
import sys
import psutil, torch, transformers  # they have their own ways on other systems; ours are asked here
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in {UNIX!r}:
            raise ImportError(name)
for name in {UNIX!r}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hidden())
"""


def test_dir_lists_the_public_names_and_nothing_else() -> None:
    assert set(bitwright.__all__) <= set(dir(bitwright))
    assert [name for name in dir(bitwright) if not name.startswith("_")] == sorted(bitwright.__all__)
    assert bitwright.__version__ == version("bitwright")


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "silence_libraries"])
def test_docstrings_say_what_goes_in_and_what_comes_out(name: str) -> None:
    function = getattr(bitwright, name)
    text = inspect.getdoc(function) or ""
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert section in text, section
    stated = text.partition("Args:")[2].partition("Returns:")[0]
    missing = [p for p in inspect.signature(function).parameters if p not in stated]
    assert not missing


def test_what_is_shown_of_objects_is_short(finished_report: Report) -> None:
    assert len(repr(finished_report)) < 120
    assert len(repr(finished_report.plan)) < 160
    html = finished_report._repr_html_()
    assert html.count("<tr>") >= 1 + len(finished_report.verdict.entries)
    assert f"{finished_report.result.divergence.kl:.4f}" in html
    of_blocks = [choice for choice in finished_report.plan.choices if ".layers." in choice.weight]
    assert of_blocks
    assert all(f"{choice.weight}: {choice.format}" in html for choice in of_blocks)


@pytest.fixture(scope="module")
def finished_report(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Report:
    out = tmp_path_factory.mktemp("public") / "<b>out"
    report = bitwright.quantize(str(build("llama")), str(out), "+40%", settings=TINY)  # strings are paths too
    assert "<b>" not in report._repr_html_()
    return report


def test_it_measures_where_unix_modules_are_missing(build: Build, tmp_path: Path) -> None:
    words = ["measure", str(build("llama")), "-o", "s.json", "--sequences", "8", "--length", "32", "--dtype", "float32"]
    words += ["--calibration", "documentation"]
    code = f"{HIDE}\nfrom bitwright.cli.main import app\napp({words!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "s.json").exists()


def test_doctor_and_estimate_are_functions_too(build: Build) -> None:
    source = build("llama")
    assert {finding.rule for finding in bitwright.doctor(str(source))} == {finding.rule for finding in bitwright.doctor(source)}
    found = bitwright.estimate(str(source), "8GB")
    assert found.best is not None
    assert found.lines == bitwright.estimate(source, 8_000_000_000).lines
