"""Tasks about pictures: scored as the model answers, by hand the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

import bitwright
from bitwright.data.pictures import drawn
from bitwright.data.samples import Sample
from bitwright.data.tokenizer import tokenizer_of
from bitwright.data.viewer import Viewer
from bitwright.errors import BitwrightError
from bitwright.evaluate.evaluate import Candidate
from bitwright.evaluate.picture_tasks import PictureTask
from bitwright.evaluate.tasks import score
from bitwright.host.progress import Reporter
from tests.processors import llava_with_processor

CHOICES = ["Yes.", "No.", "Perhaps."]


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava_with_processor(tmp_path_factory.mktemp("seeing") / "llava")


def rows_in(folder: Path, rows: list[dict[str, Any]], name: str = "seen.jsonl") -> Path:
    for i, picture in enumerate(drawn(len(rows), 5)):
        picture.image.save(folder / f"{i}.png")
    (folder / name).write_text("\n".join(json.dumps({"image": f"{i}.png", **row}) for i, row in enumerate(rows)))
    return folder / name


@torch.no_grad()
def likeliest(model: Any, viewer: Viewer, path: Path) -> list[int]:
    """Of every question, which of CHOICES."""
    best = []
    for i, row in enumerate(map(json.loads, path.read_text().splitlines())):
        picture = drawn(i + 1, 5)[i]
        sums = []
        for choice in CHOICES:
            prompt = viewer.prompt(type(picture)(picture.image, row["question"]))
            ids = prompt.ids.tolist()
            answer = [*viewer.tokenizer(choice, add_special_tokens=False).input_ids, viewer.tokenizer.eos_token_id]
            logits = model(input_ids=torch.tensor([ids + answer]), **prompt.media).logits[0].log_softmax(-1)
            sums.append(sum(float(logits[len(ids) - 1 + t, token]) for t, token in enumerate(answer)))
        best.append(sums.index(max(sums)))
    return best


def test_the_likeliest_choice_is_the_answer(seeing: Path, tmp_path: Path) -> None:
    questions = [{"question": f"Is it so, {i}?", "choices": CHOICES, "answer": i % 3} for i in range(9)]
    path = rows_in(tmp_path, questions)
    viewer = Viewer.of(seeing, tokenizer_of(seeing))
    model = AutoModelForImageTextToText.from_pretrained(seeing, dtype=torch.float32).eval()
    best = likeliest(model, viewer, path)
    candidates = [Candidate("a", str(seeing), dtype="float32"), Candidate("b", str(seeing), dtype="bfloat16")]
    (first,), (second,) = score(candidates, [str(path)], viewer=viewer)
    assert (first.task, first.metric, first.n_questions) == ("seen", "acc", 9)
    assert first.value == pytest.approx(sum(b == i % 3 for i, b in enumerate(best)) / 9)
    assert second.difference == pytest.approx(second.value - first.value)


def test_rows_with_choices_and_rows_with_words_are_two_metrics() -> None:
    sample = Sample.of([1, 2])
    task = PictureTask("x", ((sample,), (sample, sample), (sample,), (sample, sample)), (None, 1, None, 0))
    found = task.figures([-9.0, -3.0, -2.0, -1.0, -5.0, -4.0], [True, False, True, False, False, False])
    assert found == {"exact_match": [1.0, 0.0], "acc": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "What?", "choices": ["One."], "answer": 0}, "choices with the index"),
        ({"question": "What?", "choices": CHOICES, "answer": 3}, "choices with the index"),
        ({"question": "What?"}, "choices with the index"),
        ({"answer": "Red."}, "an image and a question"),
    ],
)
def test_odd_rows_are_named(seeing: Path, tmp_path: Path, row: dict[str, Any], says: str) -> None:
    path = rows_in(tmp_path, [{"question": "What?", "answer": "Red."}, row])
    with pytest.raises(BitwrightError, match=says) as caught:
        score([], [str(path)], viewer=Viewer.of(seeing, tokenizer_of(seeing)))
    assert "row 2" in caught.value.finding.where
    with pytest.raises(BitwrightError, match="cannot be shown any"):
        score([], [str(path)])


def test_evaluate_answers_tasks_with_images(seeing: Path, tmp_path: Path) -> None:
    path = rows_in(tmp_path, [{"question": "Is it so?", "choices": CHOICES, "answer": 0}] * 4)
    (entry,) = bitwright.evaluate(str(seeing), [], tasks=(str(path),), sequences=2, length=64, reporter=Reporter(quiet=True))
    assert [(score.task, score.n_questions) for score in entry.tasks] == [("seen", 4)]
