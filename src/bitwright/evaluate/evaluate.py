"""Compare checkpoints with a reference in a fresh process, loaded by the stock runtime."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from bitwright.checkpoint.workdir import content_hash
from bitwright.errors import fail
from bitwright.evaluate.figures import Divergence
from bitwright.versions import versions

LAYOUT = 1  # of the kept references; another number makes the old ones unknown


@dataclass(frozen=True)
class Candidate:
    """A model to compare. ``quantize``: let bitsandbytes quantize it while loading, but for ``skip_modules``."""

    label: str
    path: str
    dtype: str = "bfloat16"
    quantize: bool = False
    skip_modules: tuple[str, ...] | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Text:
    """Token sequences to compare on, and the domain of each where the text names domains."""

    ids: list[list[int]]  # [S][T]
    domains: tuple[str, ...] = ()  # [S]


def compare(
    reference: Candidate,
    candidates: list[Candidate],
    text: Text,
    *,
    device: str = "cpu",
    quiet: bool = False,
    greedy: int = 0,
    scratch: Path | None = None,
    references: Path | None = None,
    fingerprint: str = "",
) -> list[Divergence]:
    """One Divergence per candidate on ``text``, the starts of whose sequences are continued by ``greedy`` tokens.

    ``references``: a folder in which what is kept of the reference's distributions stays for the next comparison, under the
    ``fingerprint`` of its weights. Raises BitwrightError when the process fails, with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        job_path, out_path = Path(folder) / "job.json", Path(folder) / "out.json"
        key = content_hash(fingerprint, reference.dtype, device, greedy, text.ids, versions(), LAYOUT)
        job = {
            "reference": asdict(reference), "candidates": [asdict(c) for c in candidates], "device": device, "quiet": quiet,
            "greedy": greedy, "reference_file": str((references or Path(folder)) / f"{key}.safetensors"), **asdict(text),
        }  # fmt: skip
        job_path.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "bitwright.evaluate.worker", str(job_path), str(out_path)]
        errors = Path(folder) / "errors.txt"
        with open(errors, "w", encoding="utf-8") as log:
            done = subprocess.run(command, stderr=log if quiet else None, stdout=log, check=False)
        if done.returncode:
            lines = errors.read_text(encoding="utf-8").strip().splitlines() or ["see above"]
            raise fail(
                "evaluate/process", ", ".join(c.path for c in candidates), saw=f"exit code {done.returncode}: {lines[-1]}",
                wanted="the stock runtime loads and runs every model", help="load the model by hand to see the whole message",
            )  # fmt: skip
        return [Divergence.from_dict(row) for row in json.loads(out_path.read_text(encoding="utf-8"))]
