"""Pictures: drawn ones, those of people, and what a model is shown of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from bitwright.data import image_rows, installed_pictures
from bitwright.data.held_out import BLANK, WRONG, held_out, require_unseen
from bitwright.data.image_rows import images_of, opened, pictures_in, read_pictures
from bitwright.data.pictures import drawn
from bitwright.data.samples import samples_in, tensors_of
from bitwright.data.tokenizer import tokenizer_of
from bitwright.data.viewer import Viewer, viewer_of
from bitwright.errors import BitwrightError
from bitwright.host.progress import Reporter
from tests.processors import llava_with_processor


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava_with_processor(tmp_path_factory.mktemp("seeing") / "llava")


@pytest.fixture(scope="module")
def viewer(seeing: Path) -> Viewer:
    return Viewer.of(seeing, tokenizer_of(seeing))


def test_a_seed_draws_the_same_pictures_and_another_seed_others() -> None:
    first, again, others = drawn(20, 3), drawn(20, 3), drawn(20, 4)
    assert [p.image.tobytes() for p in first] == [p.image.tobytes() for p in again]
    assert {p.image.tobytes() for p in first}.isdisjoint(p.image.tobytes() for p in others)
    assert len({p.task for p in first}) >= 5
    assert all(p.question.endswith("?") and p.answer for p in first)


def test_only_the_answer_is_scored(viewer: Viewer) -> None:
    picture = drawn(1, 0)[0]
    (sample,) = viewer.told([picture])
    answer = sample.ids[sample.positions + 1]
    assert torch.equal(answer, sample.following)
    assert viewer.tokenizer.decode(answer) == picture.answer + viewer.tokenizer.eos_token
    assert int((sample.ids == viewer.tokenizer.convert_tokens_to_ids("<image>")).sum()) == 16
    assert sample.media["pixel_values"].shape == (1, 3, 56, 56)
    (back,) = samples_in(tensors_of([sample]))
    assert back.digest() == sample.digest()


def test_a_model_answers_the_same_with_the_same_seed_and_never_with_an_image(viewer: Viewer, seeing: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(seeing, dtype=torch.float32).eval()
    own = model.generation_config
    first = viewer.asked(model, drawn(3, 0), 1, Reporter(quiet=True))
    again = viewer.asked(model, drawn(3, 0), 1, Reporter(quiet=True))
    assert [s.digest() for s in first] == [s.digest() for s in again]
    assert model.generation_config is own
    image = viewer.tokenizer.convert_tokens_to_ids("<image>")
    assert all(int((sample.ids == image).sum()) == 16 for sample in first)


def test_pixels_depend_on_the_processor_and_the_key_says_so(seeing: Path, tmp_path: Path, viewer: Viewer) -> None:
    other = llava_with_processor(tmp_path / "other")
    settings = json.loads((other / "processor_config.json").read_text())
    settings["image_processor"]["image_mean"] = [0.5, 0.5, 0.5]
    (other / "processor_config.json").write_text(json.dumps(settings))
    changed = Viewer.of(other, tokenizer_of(other))
    assert viewer.key() == Viewer.of(seeing, tokenizer_of(seeing)).key() != changed.key()
    assert viewer.told(drawn(1, 0))[0].digest() != changed.told(drawn(1, 0))[0].digest()


def test_without_a_processor_images_are_left_out_and_the_note_says_why(seeing: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in seeing.iterdir():
        if "processor" not in path.name:
            (bare / path.name).write_bytes(path.read_bytes())
    config = json.loads((bare / "config.json").read_text())
    found, note = viewer_of(bare, config, tokenizer_of(bare))
    assert found is None
    assert "images are left out" in note
    assert viewer_of(bare, {}, None) == (None, "")


def save(image: Any, path: Path, **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    image.save(path, **options)
    return path


def test_rows_and_folders_of_pictures(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 30), (200, 10, 10))
    save(picture, tmp_path / "a.png")
    save(picture.convert("CMYK"), tmp_path / "b.jpg")
    frames = [Image.new("P", (40, 30), colour) for colour in (1, 2, 3)]
    frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:])
    save(picture.resize((4000, 3000)), tmp_path / "d.png")
    (tmp_path / "a.txt").write_text("A red field.\n")
    found = read_pictures(str(tmp_path))
    assert [p.image.mode for p in found] == ["RGB"] * 4
    assert found[0].answer == "A red field."
    assert max(found[3].image.size) == image_rows.LONGEST_SIDE
    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]},
        {"role": "assistant", "content": "So."},
    ]
    rows = [
        {"image": "a.png", "question": "What?", "answer": "Red."},
        {"images": ["b.jpg"], "messages": talk},
        {"text": "words"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shown = read_pictures(str(tmp_path / "rows.jsonl"))
    assert [(p.question, p.answer) for p in shown] == [("What?", "Red."), ("Why?", "So.")]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"image": "nowhere.png"}, "no such file"),
        ({"image": "../outside.png"}, "leads out of"),
        ({"image": "text.png"}, "UnidentifiedImageError"),
        ({"image": "short.png"}, "truncated"),
        ({"image": "dot.png"}, "1 x 1 pixels"),
        ({"image": "huge.png"}, "pixels"),
        ({"image": 7}, "image is int"),
        ({"images": ["whole.png"] * 9}, "9 images"),
        ({"images": {"a": 1}}, "images is dict"),
    ],
)
def test_odd_images_are_refused_by_row(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    (tmp_path / "rows").mkdir()
    save(Image.new("RGB", (20, 20)), tmp_path / "outside.png")
    tmp_path = tmp_path / "rows"
    (tmp_path / "text.png").write_text("no image")
    save(Image.new("RGB", (1, 1)), tmp_path / "dot.png")
    whole = save(drawn(1, 0)[0].image, tmp_path / "whole.png").read_bytes()
    (tmp_path / "short.png").write_bytes(whole[: len(whole) // 2])
    if row.get("image") == "huge.png":
        save(Image.new("1", (50_000, 10_000)), tmp_path / "huge.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "first"}) + "\n" + json.dumps(row))
    with pytest.raises(BitwrightError, match="images/row") as caught:
        read_pictures(str(tmp_path / "rows.jsonl"))
    assert "row 2" in caught.value.finding.where
    assert says in caught.value.finding.saw


def test_the_verdict_asks_about_pictures_that_calibration_did_not_show(viewer: Viewer, tmp_path: Path) -> None:
    probe = held_out(viewer.tokenizer, "documentation", 2, 64, viewer)
    samples, domains = probe.samples, probe.domains
    assert {domain: domains.count(domain) for domain in domains} == {"pictures": 16, WRONG: 16, BLANK: 16, "documentation": 6}
    assert set(probe.controls) == {WRONG, BLANK}
    assert [bool(sample.media) for sample in samples] == [domain.startswith("pictures") for domain in domains]
    right, wrong, blank = (samples[16 * i : 16 * (i + 1)] for i in range(3))
    for question, other, empty in zip(right, wrong, blank, strict=True):
        assert torch.equal(question.ids, other.ids), "the same question and answer"
        assert torch.equal(question.ids, empty.ids)
        assert not torch.equal(question.media["pixel_values"], other.media["pixel_values"])
        assert empty.media["pixel_values"].flatten(2).std(-1).max() == 0
    assert len(probe.pictures) == len(probe.prompts) == 6
    assert torch.equal(probe.prompts[0].ids, right[0].ids[: probe.prompts[0].n_tokens])
    picture = drawn(1, 0)[0]
    for name in ("one", "two"):
        save(picture.image, tmp_path / name / "a.png")
        (tmp_path / name / "a.txt").write_text("Words.")
    with pytest.raises(BitwrightError, match="held-out/seen"):
        require_unseen(str(tmp_path / "one"), str(tmp_path / "two"), viewer.tokenizer)
    save(drawn(2, 0)[1].image, tmp_path / "two" / "a.png")
    require_unseen(str(tmp_path / "one"), str(tmp_path / "two"), viewer.tokenizer)
    (tmp_path / "one" / "a.txt").unlink()
    with pytest.raises(BitwrightError, match="1 images without an answer"):
        held_out(viewer.tokenizer, str(tmp_path / "one"), 2, 64, viewer)
    with pytest.raises(BitwrightError, match="held-out/images"):
        held_out(viewer.tokenizer, str(tmp_path / "two"), 2, 64)


def test_a_question_about_several_images(viewer: Viewer, tmp_path: Path) -> None:
    for i, picture in enumerate(drawn(3, 0)):
        save(picture.image, tmp_path / f"{i}.png")
    row = {"images": ["0.png", "1.png", "2.png"], "question": "Which is red?", "answer": "The second."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (picture,) = read_pictures(str(tmp_path / "rows.jsonl"))
    assert len(picture.images) == 3
    (sample,) = viewer.told([picture])
    assert int((sample.ids == viewer.tokenizer.convert_tokens_to_ids("<image>")).sum()) == 3 * 16
    assert sample.media["pixel_values"].shape == (3, 3, 56, 56)


def test_photographs_are_shown_upright(tmp_path: Path) -> None:
    """A phone that is held upright stores the picture on its side, and notes that."""
    image, note = Image.new("RGB", (64, 32), "red"), Image.Exif()
    image.paste("blue", (0, 0, 32, 32))
    note[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=note)
    with Image.open(tmp_path / "a.jpg") as decoded:
        for shown in (opened(tmp_path / "a.jpg", "a.jpg"), images_of({"image": decoded}, tmp_path, "row 1")[0]):
            assert shown.size == (32, 64)
            assert shown.getpixel((16, 4))[2] > 200


def test_rows_of_a_data_set_with_images(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    rows = [{"image": picture.image, "question": picture.question, "answer": picture.answer} for picture in drawn(4, 0)]

    def load_dataset(name: str, **_: Any) -> Any:
        asked.append(name)
        return iter([*rows, {"text": "words"}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    found = pictures_in("somebody/pictures")
    assert [picture.answer for picture in found] == [row["answer"] for row in rows]
    assert [picture.image.tobytes() for picture in found] == [row["image"].tobytes() for row in rows]
    assert pictures_in("somebody/pictures")[0].question == rows[0]["question"]
    assert asked == ["somebody/pictures"], "asked for once"
    assert pictures_in("documentation") == []


def test_pictures_of_installed_packages_are_shown_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried = tmp_path / "carried"
    save(drawn(1, 0)[0].image.resize((900, 700)), carried / "large.png", compress_level=0)
    save(drawn(2, 0)[1].image, carried / "small.png", compress_level=0)
    save(Image.new("RGB", (20, 20)), carried / "icon.png")
    (carried / "broken.jpg").write_bytes(b"no picture" * 1000)
    installed_pictures._images.cache_clear()
    monkeypatch.setattr(installed_pictures, "_files", lambda: iter(sorted(carried.iterdir())))
    found = installed_pictures.installed_pictures(5, 0)
    again = installed_pictures.installed_pictures(5, 0)
    assert {picture.image.size for picture in found} == {(224, 224), (448, 448)}
    assert [(p.question, p.image.tobytes()) for p in found] == [(p.question, p.image.tobytes()) for p in again]
    assert not any(picture.answer for picture in found)
    installed_pictures._images.cache_clear()
    monkeypatch.setattr(installed_pictures, "_files", lambda: iter(()))
    assert installed_pictures.installed_pictures(5, 0) == []
    installed_pictures._images.cache_clear()
