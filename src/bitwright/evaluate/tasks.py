"""Multiple-choice tasks: those of lm-evaluation-harness by name, and local files of questions."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitwright.data.viewer import Viewer
from bitwright.errors import BitwrightError, fail
from bitwright.evaluate.evaluate import Candidate
from bitwright.evaluate.figures import TaskScore
from bitwright.evaluate.picture_tasks import PictureTask, has_pictures, score_pictures
from bitwright.evaluate.process import run_worker
from bitwright.host.packages import require_package
from bitwright.host.progress import QUIET, Reporter
from bitwright.host.schedule import TASKS
from bitwright.host.texts import UnreadableError, parse_json, read_text

OTHER_FILES = (".json", ".csv", ".txt", ".parquet", ".yaml")


def score(
    candidates: list[Candidate],
    names: list[str],
    *,
    limit: int | None = None,
    device: str = "cpu",
    reporter: Reporter = QUIET,
    viewer: Viewer | None = None,
) -> list[tuple[TaskScore, ...]]:
    """The scores of each candidate in the tasks ``names``, differences taken from the first candidate.

    A name that ends in .jsonl is a file with a question, its choices and the index of the answer on each line, and perhaps an
    image, which the model is shown by its ``viewer``; all others are tasks of lm-evaluation-harness. ``limit``: questions of
    each task, from its start. Raises BitwrightError for a file that is not one, an unknown task, and where the package is
    missing. Without candidates nothing is run, and only that is found out.
    """
    stems = [Path(name).stem for name in names]
    if len(set(stems)) < len(stems):
        raise fail(
            "tasks/names", "--tasks", saw=", ".join(names), wanted="tasks and files of different names", help="rename a file"
        )
    for name in names:
        _require_questions(name)
    of_pictures = [name for name in names if has_pictures(name)]
    pictures = [PictureTask.read(Path(name), viewer, limit) for name in of_pictures]
    texts = [name for name in names if name not in of_pictures]
    scores = _of_texts(candidates, texts, limit, device, reporter) if texts else [()] * len(candidates)
    if not candidates:
        return []
    seen = score_pictures(candidates, pictures, device=device, reporter=reporter)
    return [text + own for text, own in zip(scores, seen, strict=True)]


def _require_questions(name: str) -> None:
    """Raise BitwrightError for a file that is not there, or of a kind that holds no questions."""
    path = Path(name)
    if path.suffix == ".jsonl" and not path.is_file():
        saw = "a directory" if path.is_dir() else "no such file"
    elif path.suffix != ".jsonl" and (path.exists() or path.suffix in OTHER_FILES):
        saw = "not a .jsonl file"
    else:
        return
    raise fail(
        "tasks/file",
        name,
        saw=saw,
        wanted="a .jsonl file with one question a line, or the name of a task of lm-evaluation-harness",
        help='a line such as {"question": "Is fire hot?", "choices": ["yes", "no"], "answer": 0}',
    )


def _of_texts(
    candidates: list[Candidate], names: list[str], limit: int | None, device: str, reporter: Reporter
) -> list[tuple[TaskScore, ...]]:
    require_package("tasks/package", "--tasks", "lm_eval", "lm-evaluation-harness runs the tasks")
    tasks = [{"name": name, "questions": read_questions(Path(name)) if name.endswith(".jsonl") else None} for name in names]
    if not candidates and all(task["questions"] for task in tasks):
        return []  # nothing that only the harness knows
    job = {"candidates": [asdict(c) for c in candidates], "tasks": tasks, "limit": limit, "device": device}
    paths = [candidate.path for candidate in candidates]
    with tempfile.TemporaryDirectory() as folder, reporter.stage(TASKS, len(paths)) as advance:
        answer = run_worker("bitwright.evaluate.tasks_worker", job, Path(folder), paths, reporter, advance)
    if "unknown" in answer:
        raise fail(
            "tasks/unknown",
            "--tasks",
            saw=answer["unknown"],
            wanted="a task of lm-evaluation-harness or a .jsonl file",
            help="lm-eval ls tasks prints them all",
        )
    return [tuple(TaskScore(**row) for row in rows) for rows in answer["scores"]]


def read_questions(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file: ``question``, ``choices`` (two or more) and ``answer`` (index of the right one)."""
    try:
        lines = read_text(path).split("\n")  # splitlines() would also cut at what JSON allows in a string
    except UnreadableError as error:
        raise _bad(str(path), str(error)) from None
    questions = [_question(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise _bad(str(path), "no questions")
    return questions


def _question(line: str, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
        question, choices, answer = row["question"], row["choices"], row["answer"]
    except (ValueError, KeyError, TypeError):
        raise _bad(where, line[:60]) from None
    texts = isinstance(question, str) and isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    if not texts or len(choices) < 2 or type(answer) is not int or not 0 <= answer < len(choices):
        raise _bad(where, line[:60])
    return {"question": question, "choices": choices, "answer": answer}


def _bad(where: str, saw: str) -> BitwrightError:
    return fail(
        "tasks/question",
        where,
        saw=saw,
        wanted="a JSON object a line: question, choices (two or more), answer (an index)",
        help="repair the line or remove it",
    )
