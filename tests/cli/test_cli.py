"""What a shell sees: exit codes, four-part errors, JSON, and nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bitwright.cli.main import app
from bitwright.errors import BitwrightError
from bitwright.host.sizes import size_nbytes
from tests.conftest import Build, Shell

LIBRARIES_SAY = ("Warning", "site-packages", "Loading weights", "Writing model shards", "kernels-community", "%|")
SHORT = ["--sequences", "8", "--length", "32", "--dtype", "float32", "--calibration", "documentation"]


def test_quantize_measure_allocate_evaluate_from_the_shell(build: Build, shell: Shell, tmp_path: Path) -> None:
    source = str(build("llama"))
    measured = shell("measure", source, "-o", "s.json", *SHORT, cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    assert "bitwright allocate s.json" in measured.stderr
    planned = shell("allocate", "s.json", "--budget", "+30%", "--set", "*.k_proj=16bit", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "pinned by --set" in planned.stdout
    done = shell("quantize", source, "out", "--budget", "+30%", "--json", "--no-compare", *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["schema"] == "bitwright.report/2"
    compared = shell("evaluate", source, "out", "--sequences", "2", "--length", "32", "--json", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    lines = json.loads(compared.stdout)
    assert [line["label"] for line in lines] == ["16-bit arithmetic", "out"]
    assert lines[0]["divergence"]["kl"] < lines[1]["divergence"]["kl"]
    assert {p.name for p in tmp_path.iterdir()} == {"s.json", "plan.json", "out"}
    said = "".join(run.stderr for run in (measured, planned, done, compared))
    assert not [noise for noise in LIBRARIES_SAY if noise in said], said


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--budget", "-60%"], "budget/minimum"),
        (["--budget", "1TB"], "budget/maximum"),
        (["--budget", "plenty"], "budget/syntax"),
        (["--container", "floppy"], "container/unknown"),
        (["--formats", "int3"], "formats/unknown"),
        (["--set", "*.nothing=16bit"], "allocate/pin"),
        (["--calibration", "no/such/file.txt"], "calibration/source"),
        (["--held-out", "no/such/file.txt"], "calibration/source"),
        (["--held-out", "text.txt", "--calibration", "text.txt"], "held-out/seen"),
        (["--device", "cuda:99"], "device/unknown"),
        (["--max-memory", "lots"], "memory/syntax"),
        (["--max-memory", "1MB"], "memory/ceiling"),
    ],
)
def test_wrong_options_are_four_part_errors(build: Build, tmp_path: Path, words: list[str], rule: str) -> None:
    options = [w for pair in zip(SHORT[::2], SHORT[1::2], strict=True) if pair[0] not in words for w in pair]
    result = CliRunner().invoke(app, ["quantize", str(build("llama")), str(tmp_path / "out"), "--json", *options, *words])
    assert result.exit_code == 2, result.output
    error = json.loads(result.stdout)["error"]
    assert error["rule"] == rule
    assert all(error[part] for part in ("where", "saw", "wanted", "help"))
    assert f"error[{rule}]" in result.stderr
    assert not (tmp_path / "out").exists()


def test_bad_sources_and_outputs(build: Build, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    (tmp_path / "not.gguf").write_bytes(b"GGML1234")
    (tmp_path / "empty.txt").write_text("")
    source = str(build("llama"))
    for words, rule in (
        ([source, str(tmp_path / "taken")], "output/exists"),
        ([str(tmp_path / "nowhere"), "out"], "source/unknown"),
        ([str(tmp_path / "not.gguf"), "out"], "source/gguf"),
        ([str(tmp_path / "taken"), str(tmp_path / "out")], "checkpoint/config"),
        ([source, str(tmp_path / "out"), "--calibration", str(tmp_path / "empty.txt")], "calibration/empty"),
        ([source, "/proc/out"], "output/read-only"),
    ):
        result = CliRunner().invoke(app, ["quantize", *words])
        assert result.exit_code == 2, (words, result.output)
        assert f"error[{rule}]" in result.stderr, (words, result.stderr)
    assert (tmp_path / "taken" / "file").read_text() == "mine"


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; from bitwright.cli.main import app\n"
        "try: app(['quantize', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_sizes() -> None:
    assert (size_nbytes("8GB"), size_nbytes("1.5 GiB"), size_nbytes("700m"), size_nbytes("")) == (
        8 * 10**9,
        1610612736,
        7 * 10**8,
        None,
    )
    with pytest.raises(BitwrightError):
        size_nbytes("8 bananas")
