"""Tasks about pictures: each answer is scored as the model's own answer to the question, by its chat template."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from bitwright.data.image_rows import picture_of
from bitwright.data.pictures import Picture
from bitwright.data.rows import has_image, read_rows
from bitwright.data.samples import Sample, tensors_of
from bitwright.data.viewer import Viewer
from bitwright.errors import BitwrightError, fail
from bitwright.evaluate.evaluate import Candidate
from bitwright.evaluate.figures import TaskScore, task_scores
from bitwright.evaluate.process import run_worker
from bitwright.host.progress import QUIET, Reporter
from bitwright.host.schedule import TASKS

CHOSEN, WORD_FOR_WORD = "acc", "exact_match"  # metrics of rows with choices and of those without


@dataclass(frozen=True)
class PictureTask:
    """Questions about pictures. ``rights``: the index of the right choice, None where the answer is to be word for word."""

    name: str
    samples: tuple[tuple[Sample, ...], ...]  # of each question: one for each of its choices, or its answer
    rights: tuple[int | None, ...]

    @classmethod
    def read(cls, path: Path, viewer: Viewer | None, limit: int | None) -> PictureTask:
        """The rows of a .jsonl or .parquet file: ``image``, ``question``, and ``choices`` with the index ``answer``, or
        ``answer`` alone in words. Raises BitwrightError for a row that is not so, and for a model that sees nothing."""
        if viewer is None:
            raise _bad(str(path), "images, and a model that cannot be shown any", "a reference that sees")
        rows = list(read_rows(str(path)))[:limit]
        samples, rights = [], []
        for number, row in enumerate(rows, 1):
            where = f"{path}, row {number}"
            choices, answer = row.get("choices"), row.get("answer")
            if not has_image(row) or not row.get("question"):
                raise _bad(where, f"columns {', '.join(row)}", "an image and a question in every row, as in the first")
            if choices is None and isinstance(answer, str) and answer:
                choices, right = [answer], None
            elif _are_choices(choices) and type(answer) is int and 0 <= answer < len(choices):
                right = answer
            else:
                raise _bad(where, f"answer {answer!r:.60}", "choices with the index of the right one, or an answer in words")
            picture = picture_of({**row, "answer": ""}, path.parent, where)
            samples.append(tuple(viewer.told([Picture(picture.image, picture.question, choice) for choice in choices])))
            rights.append(right)
        return cls(path.stem, tuple(samples), tuple(rights))

    def figures(self, likelihoods: list[float], greedy: list[bool]) -> dict[str, list[float]]:
        """Metric -> 1 or 0 for each question, from the log-likelihood of each sample and whether it is the likeliest."""
        found: dict[str, list[float]] = {}
        at = 0
        for samples, right in zip(self.samples, self.rights, strict=True):
            of_question = range(at, at + len(samples))
            at += len(samples)
            metric = WORD_FOR_WORD if right is None else CHOSEN
            hit = (
                greedy[of_question[0]] if right is None else max(of_question, key=likelihoods.__getitem__) == of_question[right]
            )
            found.setdefault(metric, []).append(float(hit))
        return found


def has_pictures(name: str) -> bool:
    """Whether the task ``name`` is a file whose first row has an image."""
    if not name.endswith((".jsonl", ".parquet")) or not Path(name).is_file():
        return False
    first: dict[str, Any] = next(iter(read_rows(name)), {})
    return has_image(first)


def score_pictures(
    candidates: list[Candidate], tasks: list[PictureTask], *, device: str = "cpu", reporter: Reporter = QUIET
) -> list[tuple[TaskScore, ...]]:
    """The scores of each candidate, differences taken from the first."""
    if not candidates or not tasks:
        return [()] * len(candidates)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = [sample for task in tasks for of_question in task.samples for sample in of_question]
        save_file(tensors_of(samples), folder / "samples.safetensors")
        job = {
            "candidates": [asdict(c) for c in candidates],
            "samples_file": str(folder / "samples.safetensors"),
            "device": device,
        }
        paths = [candidate.path for candidate in candidates]
        with reporter.stage(f"{TASKS} about pictures", len(paths)) as advance:
            rows = run_worker("bitwright.evaluate.picture_tasks_worker", job, folder, paths, reporter, advance)
    found = [_by_task(tasks, row["likelihoods"], row["greedy"]) for row in rows]
    return [tuple(task_scores(figures, found[0])) for figures in found]


def _by_task(tasks: list[PictureTask], likelihoods: list[float], greedy: list[bool]) -> dict[str, dict[str, list[float]]]:
    found, at = {}, 0
    for task in tasks:
        end = at + sum(map(len, task.samples))
        found[task.name] = task.figures(likelihoods[at:end], greedy[at:end])
        at = end
    return found


def _are_choices(choices: object) -> bool:
    return isinstance(choices, list) and len(choices) > 1 and all(isinstance(c, str) and c for c in choices)


def _bad(where: str, saw: str, wanted: str) -> BitwrightError:
    return fail("tasks/picture", where, saw=saw, wanted=wanted, help="repair the row or remove it")
