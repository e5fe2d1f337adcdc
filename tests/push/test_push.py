"""Publishing: what goes, what never goes, and what a refusal looks like."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitwright import BitwrightError, push
from tests.hub import TOKEN, stand_in

SEND = "import sys; from bitwright.cli.main import app; app(sys.argv[1:])"


@pytest.fixture
def result(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("bitwright.json", "report.json", "config.json"):
        (out / name).write_text("{}")
    (out / "README.md").write_text("---\nlicense: mit\n---\n# out\n")
    (out / "report.html").write_text("<!doctype html>" + "x" * 20_000)
    (out / "model.safetensors").write_bytes(os.urandom(50_000))
    (out / "LICENSE").write_text("do what you like")
    for name in (".env", "notes.pem", "pickle.bin"):
        (out / name).write_text("secret")
    (out / "link.json").symlink_to(out / "config.json")
    return out


def send(address: str, token: str | None, *words: str) -> subprocess.CompletedProcess[str]:
    """bitwright push in a fresh process, talking to ``address``."""
    environ = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environ |= {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": ""}
    environ |= {"HF_TOKEN": token} if token else {}
    environ["HF_HOME"] = "/nonexistent"
    return subprocess.run(
        [sys.executable, "-c", SEND, "push", *words], env=environ, capture_output=True, text=True, check=False
    )


EXPECTED = {"LICENSE", "README.md", "bitwright.json", "config.json", "model.safetensors", "report.html", "report.json"}


def test_a_result_arrives_whole_and_nothing_else_does(result: Path) -> None:
    with stand_in() as hub:
        done = send(hub.address, TOKEN, str(result), "me/model", "--private")
        assert done.returncode == 0, done.stderr
        assert hub.repositories["me/model"]["visibility"] == "private"
        assert hub.files == {name: (result / name).read_bytes() for name in EXPECTED}
        assert f"{hub.address}/me/model" in done.stdout
        assert TOKEN not in done.stdout + done.stderr


def test_private_never_goes_into_a_public_repository(result: Path) -> None:
    with stand_in() as hub:
        assert send(hub.address, TOKEN, str(result), "me/model").returncode == 0
        hub.files.clear()
        done = send(hub.address, TOKEN, str(result), "me/model", "--private")
        assert done.returncode == 2
        assert "error[push/public]" in done.stderr
        assert hub.files == {}


def test_a_dry_run_talks_to_nobody(result: Path) -> None:
    with stand_in() as hub:
        done = send(hub.address, TOKEN, str(result), "me/model", "--dry-run")
        assert done.returncode == 0, done.stderr
        assert hub.requests == []
        assert all(name in done.stdout for name in EXPECTED)
        assert "notes.pem" not in done.stdout


@pytest.mark.parametrize(("token", "writable", "status"), [(None, True, 401), ("hf_wrong", True, 401), (TOKEN, False, 403)])
def test_a_refusal_is_a_four_part_error_without_the_token(result: Path, token: str | None, writable: bool, status: int) -> None:
    with stand_in() as hub:
        hub.writable = writable
        done = send(hub.address, token, str(result), "me/model")
        assert done.returncode == 2
        assert "error[push/hub]" in done.stderr
        assert f"HTTP {status}" in done.stderr
        assert token is None or token not in done.stdout + done.stderr
        assert hub.files == {}


def test_nobody_there_is_a_four_part_error(result: Path) -> None:
    done = send("http://127.0.0.1:9", TOKEN, str(result), "me/model")
    assert done.returncode == 2
    assert "error[push/hub]" in done.stderr


def test_secrets_stop_it_before_anything_is_sent(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (result / "report.json").write_text('{"command": ["--token", "' + TOKEN + '"]}')
    assert refused(result) == "push/private"
    monkeypatch.setenv("HF_TOKEN", "another-kind-of-token")
    (result / "report.json").write_text("x" * (1 << 24) + "another-kind-of-token")
    assert refused(result) == "push/private"
    monkeypatch.setenv("HOME", "/home/someone")
    (result / "report.json").write_text('{"out": "/home/someone/out"}')
    assert refused(result) == "push/private"
    monkeypatch.setenv("HOME", "/home/j\u00fcrgen")
    (result / "report.json").write_text(json.dumps({"out": "/home/j\u00fcrgen/out"}))
    assert refused(result) == "push/private"
    (result / "report.json").write_text('{"out": "/home/someone/out", "other": "/home/j\u00fcrgens/out"}')
    files, _ = push(result, "me/model", dry_run=True)
    assert {file.name for file in files} == EXPECTED


@pytest.mark.parametrize("repo", ["model", "a/b/c", "me/../x", "me/-", ""])
def test_names_that_the_hub_does_not_know(result: Path, repo: str) -> None:
    assert refused(result, repo) == "push/name"


def test_a_gguf_file_goes_with_what_stands_beside_it(tmp_path: Path) -> None:
    for name in (
        "model.bitwright.json",
        "model.report.json",
        "model.Modelfile",
        "model.README.md",
        "model.private.json",
        "model.private.README.md",
        "other.README.md",
    ):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    files, _ = push(tmp_path / "model.gguf", "me/model", dry_run=True)
    assert {f.name for f in files} == {
        "model.gguf",
        "model.bitwright.json",
        "model.report.json",
        "model.Modelfile",
        "README.md",
    }


def test_anything_else_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert refused(tmp_path) == "push/result"
    assert refused(tmp_path / "nothing") == "push/result"
    assert refused(tmp_path / "nothing.gguf") == "push/result"


def refused(out: Path, repo: str = "me/model") -> str:
    with pytest.raises(BitwrightError) as caught:
        push(out, repo, dry_run=True)
    return caught.value.finding.rule
