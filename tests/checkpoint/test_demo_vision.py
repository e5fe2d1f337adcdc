"""The demo model that sees: put together from the demo's text and what the repository carries."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from bitwright.checkpoint import demo_vision
from bitwright.checkpoint.open import local_directory
from bitwright.data.pictures import Picture, scenes
from bitwright.data.tokenizer import tokenizer_of
from bitwright.data.viewer import Viewer
from bitwright.doctor.doctor import examine
from bitwright.errors import Severity
from bitwright.evaluate.evaluate import Candidate
from bitwright.evaluate.tasks import score

MOST_BYTES = 12_000_000
N_SCENES = 20
UNSEEN_SEED = 7_000  # training draws from 10,000 on


@pytest.fixture(scope="module")
def demo() -> Path:
    return local_directory("demo-vision")


def test_what_the_repository_carries_is_small(demo: Path) -> None:
    assert demo_vision.EYES.stat().st_size < MOST_BYTES
    assert local_directory("demo-vision") == demo, "put together once"


def test_the_text_is_the_demos_but_for_a_change_of_low_rank(demo: Path) -> None:
    text, whole = (load_file(path / "model.safetensors") for path in (local_directory("demo"), demo))
    changed = []
    for name, tensor in text.items():
        own = whole[name.replace("model.", "model.text_model.", 1)]
        if not torch.equal(own, tensor):
            changed.append(name)
            change = (own.float() - tensor.float()).double()
            assert torch.linalg.matrix_norm(change) < 0.5 * torch.linalg.matrix_norm(tensor.double())
    assert {name.rsplit(".", 2)[1] for name in changed} == {"q_proj", "v_proj"}


@torch.no_grad()
def test_it_sees(demo: Path, tmp_path: Path) -> None:
    """Word for word, by hand; and the same questions as a task."""
    model = AutoModelForImageTextToText.from_pretrained(demo, dtype=torch.float32).eval()
    viewer = Viewer.of(demo, tokenizer_of(demo))
    drawn = list(scenes(N_SCENES, UNSEEN_SEED))
    right = blind = 0
    for i, scene in enumerate(drawn):
        _, question, answer = scene.questions[0]
        for other in (scene, drawn[i - 1]):
            (sample,) = viewer.told([Picture(other.image, question, answer)])
            logits = model(input_ids=sample.ids[None], **sample.media).logits[0][sample.positions]
            hit = bool((logits.argmax(-1) == sample.following).all())
            right, blind = right + (hit and other is scene), blind + (hit and other is not scene)
    rows = []
    for i, scene in enumerate(drawn):
        scene.image.save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": scene.questions[0][1], "answer": scene.questions[0][2]})
    (tmp_path / "seen.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ((scored,),) = score([Candidate("demo", str(demo), dtype="float32")], [str(tmp_path / "seen.jsonl")], viewer=viewer)
    assert (scored.metric, scored.n_questions) == ("exact_match", N_SCENES)
    assert scored.value == right / N_SCENES
    assert right >= 0.6 * N_SCENES, "it answers most questions about pictures that it never saw"
    assert blind <= right // 2, "and not without the picture"


def test_nothing_about_it_is_odd(demo: Path) -> None:
    findings = [finding for finding in examine(demo) if finding.severity == Severity.ERROR]
    assert not findings, findings
    config = json.loads((demo / "config.json").read_text())
    assert config["architectures"] == ["Idefics3ForConditionalGeneration"]
    tokenizer = tokenizer_of(demo)
    assert len(tokenizer) == config["text_config"]["vocab_size"], "no token was added"
    assert tokenizer.convert_tokens_to_ids("<image>") == config["image_token_id"]
