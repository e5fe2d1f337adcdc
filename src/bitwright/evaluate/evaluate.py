"""Compare checkpoints with a reference in a fresh process, loaded by the stock runtime."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from bitwright.checkpoint.workdir import content_hash
from bitwright.data.probe import Probe
from bitwright.data.samples import tensors_of
from bitwright.errors import BitwrightError, Finding
from bitwright.evaluate.figures import Divergence
from bitwright.evaluate.process import ANSWER, WorkerError, run_worker
from bitwright.host.progress import QUIET, Reporter
from bitwright.host.schedule import COMPARE
from bitwright.host.versions import versions

LAYOUT = 5  # of the kept references; another number makes the old ones unknown


@dataclass(frozen=True)
class Candidate:
    """A model to compare. ``quantization``: the configuration with which its library quantizes it while loading. ``adapter``: a
    directory that PEFT loads over it, and that holds the same for llama.cpp where the model is a .gguf file."""

    label: str
    path: str
    dtype: str = "bfloat16"
    quantization: dict[str, Any] | None = None
    adapter: str = ""
    trust_remote_code: bool = False
    asked: bool = True  # whether it answers the probe's questions
    quick: bool = True  # whether it is compared in what the device is quick at, which may be float32, and not in ``dtype``


class PartlyComparedError(BitwrightError):
    """Some candidates could not be run; the others could. ``failures`` and ``divergences`` by number of the candidate."""

    def __init__(self, failures: dict[int, Finding], divergences: dict[int, Divergence]) -> None:
        super().__init__(next(iter(failures.values())))
        self.failures, self.divergences = failures, divergences


def compare(
    reference: Candidate,
    candidates: list[Candidate],
    probe: Probe,
    *,
    device: str = "cpu",
    reporter: Reporter = QUIET,
    stage: str = COMPARE,
    greedy: int = 0,
    scratch: Path | None = None,
    references: Path | None = None,
    fingerprint: str = "",
) -> list[Divergence]:
    """One Divergence per candidate on ``probe``, the starts of whose texts are continued by ``greedy`` tokens.

    ``references``: a folder in which what is kept of the reference's distributions stays for the next comparison, under the
    ``fingerprint`` of its weights. A candidate that ends the process costs only its own line: the others go on in a new one.
    Raises PartlyComparedError then, with the last line that the process wrote, and BitwrightError where the reference fails.
    """
    done: dict[int, Divergence] = {}
    failures: dict[int, Finding] = {}
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        key = content_hash(
            fingerprint, reference.dtype, device, greedy, [s.digest() for s in probe.samples], versions(), LAYOUT
        )
        save_file(tensors_of(probe.samples), folder / "samples.safetensors")
        save_file(tensors_of(probe.prompts), folder / "prompts.safetensors")
        kept = (references or folder) / f"{key}.safetensors"
        job = {
            "reference": asdict(reference),
            "device": device,
            "greedy": greedy,
            "reference_file": str(kept),
            "samples_file": str(folder / "samples.safetensors"),
            "prompts_file": str(folder / "prompts.safetensors"),
            "domains": probe.domains,
            "controls": probe.controls,
        }
        with reporter.stage(stage, len(candidates) + 1) as advance:
            while left := [i for i in range(len(candidates)) if i not in done and i not in failures]:
                paths = [candidates[i].path for i in left]
                part = job | {"candidates": [asdict(candidates[i]) for i in left]}
                try:
                    rows = run_worker("bitwright.evaluate.worker", part, folder, paths, reporter, advance)
                except WorkerError as error:
                    rows = error.answered or []
                    if not kept.exists():  # no candidate was reached
                        raise
                    failures |= dict.fromkeys(left[len(rows) :][:1], error.finding)
                done |= {i: Divergence.from_dict(row) for i, row in zip(left, rows, strict=False)}
                (folder / ANSWER).unlink(missing_ok=True)
    if failures:
        raise PartlyComparedError(failures, done)
    return [done[i] for i in range(len(candidates))]
