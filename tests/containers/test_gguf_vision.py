"""Two files for a model that sees: llama.cpp asked about the same picture as transformers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForImageTextToText

import bitwright
from bitwright.checkpoint.open import open_checkpoint
from bitwright.containers.gguf.container import GGUF
from bitwright.data.pictures import drawn
from bitwright.data.samples import Sample
from bitwright.data.tokenizer import tokenizer_of
from bitwright.data.viewer import Viewer
from bitwright.errors import BitwrightError
from bitwright.formats.base import Packed
from bitwright.host.progress import Reporter
from bitwright.models.open import open_model
from bitwright.models.source import Source
from bitwright.models.spec import Weight
from bitwright.pipeline import _stored_nbytes
from bitwright.plan import Choice, Plan, Rounding
from bitwright.runtimes import llama_cpp
from bitwright.runtimes.llama_cpp import LlamaCpp, mmproj_of
from bitwright.runtimes.mtmd import IMAGE, Seen, segments
from tests.processors import (
    RowProcessor,
    gemma_with_processor,
    idefics_with_processor,
    internvl_with_processor,
    llava_of_siglip,
    llava_with_processor,
    mistral3_with_processor,
    pixtral_with_processor,
    qwen_with_processor,
)

pytestmark = pytest.mark.skipif(not llama_cpp.available(), reason="needs xllamacpp")


MAKERS: dict[str, Callable[[Path], Path]] = {
    "idefics3": idefics_with_processor,
    "gemma3": gemma_with_processor,
    "internvl": internvl_with_processor,
    "qwen2_vl": partial(qwen_with_processor, "Qwen2VL"),
    "qwen2_5_vl": partial(qwen_with_processor, "Qwen2_5_VL"),
    "qwen3_vl": partial(qwen_with_processor, "Qwen3VL"),
    "llava": llava_of_siglip,
    "pixtral": pixtral_with_processor,
    "mistral3": mistral3_with_processor,
}


def source_of(directory: Path) -> Source:
    return open_model(open_checkpoint(directory), vocabulary=GGUF.vocabulary).source


MERGED = {"pixtral": 1, "mistral3": 2}  # patches a side that become one, where rows of an image end with a token


def viewer_of(directory: Path) -> Viewer:
    tokenizer = tokenizer_of(directory)
    if merged := MERGED.get(directory.name):
        return Viewer(RowProcessor(directory, tokenizer, merged), tokenizer)
    return Viewer.of(directory, tokenizer)


def samples_of(directory: Path) -> list[Sample]:
    return viewer_of(directory).told(drawn(4, 3))


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A random model of a family, made when it is first asked for."""
    place, made = tmp_path_factory.mktemp("seeing"), dict[str, Path]()

    def of(family: str) -> Path:
        if family not in made:
            made[family] = MAKERS[family](place / family)
        return made[family]

    return of


@pytest.fixture(scope="module")
def seeing(every: Callable[[str], Path]) -> Path:
    return every("idefics3")


@pytest.fixture(scope="module")
def source(seeing: Path) -> Source:
    return source_of(seeing)


@pytest.fixture(scope="module")
def samples(seeing: Path) -> list[Sample]:
    return samples_of(seeing)


def plan_of(source: Source, format: str) -> Plan:
    choices = []
    for w in source.spec.weights:
        name = "16bit" if GGUF.accepts(w, GGUF.format(format)) else format
        rounding = Rounding.NONE if name == "16bit" else Rounding.NEAREST
        choices.append(Choice(w.name, name, rounding, GGUF.nbytes(w, GGUF.format(name), source), 0.0))
    kept = GGUF.kept_nbytes(source)
    return Plan("", "gguf", format, "", None, kept + sum(c.nbytes for c in choices), kept, 0, 0, 0, 0, 0, tuple(choices))


def packed(source: Source, weight: str, name: str) -> Packed:
    chosen = GGUF.format(name)
    return Packed.of(GGUF.rounder(chosen).nearest(source.read(weight), chosen))


def written(source: Source, out: Path, format: str) -> Path:
    def packed_of(weight: Weight, name: str, rounding: Rounding) -> Packed:
        return packed(source, weight.name, name)

    plan = plan_of(source, format)
    nbytes = GGUF.write({out: plan}, source, packed_of)[out]
    assert nbytes == plan.nbytes == out.stat().st_size + mmproj_of(out).stat().st_size
    return out


def in_llama_cpp(path: Path, samples: list[Sample]) -> torch.Tensor:
    runtime = LlamaCpp(path, max(sample.n_tokens for sample in samples))
    try:
        return torch.cat([part for parts in runtime.logits(samples) for part in parts]).log_softmax(-1)
    finally:
        runtime.close()


def in_transformers(directory: Path, samples: list[Sample]) -> torch.Tensor:
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        found = [model(**whole(s)).logits[0][s.positions] for s in samples]
    return torch.cat(found).log_softmax(-1)


def whole(sample: Sample) -> dict[str, torch.Tensor]:
    return {name: tensor[None] for name, tensor in sample.inputs.items()} | sample.media


def divergence(wanted: torch.Tensor, found: torch.Tensor) -> float:
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


@pytest.mark.parametrize("family", MAKERS)
def test_llama_cpp_sees_what_transformers_sees(every: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    seeing = every(family)
    path, samples = written(source_of(seeing), tmp_path / "model.gguf", "16bit"), samples_of(seeing)
    wanted, found = in_transformers(seeing, samples), in_llama_cpp(path, samples)
    assert divergence(wanted, found) < 2e-3
    others = [Sample(s.inputs, s.scored, samples[i - 2].media) for i, s in enumerate(samples)]  # of the same size
    assert divergence(wanted, in_llama_cpp(path, others)) > 10 * divergence(wanted, found), "the pictures matter"
    runtime = LlamaCpp(path, 200)
    prompt = viewer_of(seeing).prompt(drawn(1, 3)[0])
    model = AutoModelForImageTextToText.from_pretrained(seeing, dtype=torch.float32).eval()
    made = model.generate(**whole(prompt), do_sample=False, max_new_tokens=4)[0, prompt.n_tokens :]
    assert runtime.answer(prompt, 4) == [token for token in made.tolist() if token != model.generation_config.eos_token_id]


def test_an_image_is_attended_to_in_both_directions_where_the_family_does(every: Callable[[str], Path], tmp_path: Path) -> None:
    seeing = every("gemma3")
    path, samples = written(source_of(seeing), tmp_path / "model.gguf", "16bit"), samples_of(seeing)
    wanted = in_transformers(seeing, samples)
    runtime = LlamaCpp(path, max(sample.n_tokens for sample in samples))
    assert runtime._tower is not None
    assert runtime._tower.both_ways
    runtime._tower.both_ways = False
    found = torch.cat([part for parts in runtime.logits(samples) for part in parts]).log_softmax(-1)
    assert divergence(wanted, found) > 2 * divergence(wanted, in_llama_cpp(path, samples))


def test_what_lay_in_memory_is_not_seen(every: Callable[[str], Path], tmp_path: Path) -> None:
    """llama.cpp multiplies memory that it never wrote to by zero: NaN where NaN lay there."""
    seeing = every("mistral3")
    written(source_of(seeing), tmp_path / "model.gguf", "16bit")
    environment = os.environ | {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
    asked = [sys.executable, "-c", DIRTY, str(tmp_path / "model.gguf"), str(seeing)]
    done = subprocess.run(asked, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-600:]


DIRTY = """
import sys
from pathlib import Path
import numpy as np
from tests.containers.test_gguf_vision import in_llama_cpp, samples_of
samples = samples_of(Path(sys.argv[2]))
filled = [np.full(1 << 20, 255, np.uint8) for _ in range(200)]
del filled
assert in_llama_cpp(Path(sys.argv[1]), samples).isfinite().all()
"""


def test_the_tokens_of_a_grid_are_told_their_rows_and_columns() -> None:
    image = Seen(torch.zeros(6, 4), (3, 2))
    assert image.positions(10).tolist() == [[10] * 6, [10, 10, 10, 11, 11, 11], [10, 11, 12] * 2, [0] * 6]
    assert image.n_positions == 3
    assert Seen(torch.zeros(6, 4)).positions(10).tolist() == [10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("family", ["idefics3", "qwen2_5_vl", "mistral3"])
def test_block_formats_in_the_tower(every: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    seeing = every(family)
    source, samples = source_of(seeing), samples_of(seeing)
    wide = in_transformers(seeing, samples)
    assert divergence(wide, in_llama_cpp(written(source, tmp_path / "eight.gguf", "q8_0"), samples)) < 0.02
    path = written(source, tmp_path / "four.gguf", "iq4_nl")
    model = AutoModelForImageTextToText.from_pretrained(seeing, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in source.spec.weights:
            parameter = model.get_parameter(weight.name)
            parameter.copy_(GGUF.codes(packed(source, weight.name, "iq4_nl")).decode())
        rounded = [model(**whole(s)).logits[0][s.positions] for s in samples]
    decoded = torch.cat(rounded).log_softmax(-1)
    apart = divergence(wide, decoded)
    assert divergence(decoded, in_llama_cpp(path, samples)) < 0.2 * apart, "the file is what was rounded"
    back = GGUF.read(path, source.spec.weights)
    assert set(back) == {weight.name for weight in source.spec.weights}
    for weight in source.spec.weights:
        codes = packed(source, weight.name, "iq4_nl")
        assert all(torch.equal(back[weight.name].tensors[part], tensor) for part, tensor in codes.tensors.items())


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [
        ("qwen2_5_vl", "window_size", 56),
        ("qwen2_5_vl", "fullatt_block_indexes", [0, 3]),
        ("qwen2_vl", "spatial_merge_size", 4),
        ("gemma3", "vision_use_head", True),
        ("internvl", "norm_type", "rms_norm"),
        ("mistral3", "rope_parameters", {"rope_type": "axial", "rope_theta": 5e3}),
        ("llava", "hidden_act", "relu"),
    ],
)
def test_a_tower_that_llama_cpp_computes_otherwise_is_refused(
    every: Callable[[str], Path], tmp_path: Path, family: str, setting: str, value: object
) -> None:
    shutil.copytree(every(family), tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["vision_config"][setting] = value
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    source = source_of(every(family))
    with pytest.raises(BitwrightError, match=setting):
        GGUF.require(replace(source, checkpoint=open_checkpoint(tmp_path / "other")))


def test_a_class_token_that_llama_cpp_takes_for_a_patch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BitwrightError, match="class token"):
        GGUF.require(source_of(llava_with_processor(tmp_path / "llava")))


def test_a_text_that_llama_cpp_does_not_know_is_refused(every: Callable[[str], Path]) -> None:
    source = source_of(every("mistral3"))
    stacks = tuple(replace(stack, kind="ministral3") if stack.name == "text" else stack for stack in source.spec.stacks)
    with pytest.raises(BitwrightError, match="of pixtral, ministral3"):
        GGUF.require(replace(source, spec=replace(source.spec, stacks=stacks)))


def test_a_tower_is_known_by_its_class_and_not_by_what_a_checkpoint_calls_it(
    every: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(every("idefics3"), tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["vision_config"]["model_type"] = "siglip_vision_model"  # as published ones do
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    GGUF.require(source_of(tmp_path / "other"))


def test_an_image_is_found_by_its_rows() -> None:
    image = Seen(torch.zeros(8, 4), row=2)
    assert image.fits([5, 5, 9, 5, 5, 9, 5, 5])
    assert not image.fits([5, 5, 9, 5, 5, 5, 5, 5])
    assert not image.fits([5, 5, 9, 5, 5, 9, 5, 6])
    assert not image.fits([5, 5, 9, 5, 5, 9, 5])
    assert not image.fits([5] * 8)


def test_places_of_an_image_that_are_left_over_are_no_text() -> None:
    image = Seen(torch.zeros(4, 4))
    before, inside, behind = segments(Sample.of(torch.tensor([1, 2, 7, 7, 7, 7, 3])), [image])
    assert (before.tolist(), inside, behind.tolist()) == ([1, 2], image, [3])
    for more in ([1, 7, 7, 7, 7, 7, 3], [1, 7, 2, 7, 7, 7, 7, 3]):
        with pytest.raises(BitwrightError, match="1 more places of images"):
            segments(Sample.of(torch.tensor(more)), [image])


def test_the_tower_keeps_what_no_block_holds(source: Source, tmp_path: Path) -> None:
    path = written(source, tmp_path / "model.gguf", "q8_0")
    tensors = {t.name: t.tensor_type.name for t in gguf.GGUFReader(mmproj_of(path)).tensors}
    assert tensors["v.patch_embd.weight"] == tensors["v.position_embd.weight"] == "F32"
    assert tensors["v.blk.0.attn_q.weight"] == tensors["mm.model.fc.weight"] == "Q8_0"
    assert not any(t.name.startswith(("v.", "mm.")) for t in gguf.GGUFReader(path).tensors)
    text = LlamaCpp(path.rename(tmp_path / "alone.gguf"), 64)
    with pytest.raises(BitwrightError, match="no vision tower"):
        text.answer(Sample.of([1, 2]).__class__({"input_ids": torch.tensor([1])}, None, {"pixel_values": torch.zeros(1)}), 1)


def test_nothing_but_the_image_is_given_to_the_tower(source: Source, samples: list[Sample], tmp_path: Path) -> None:
    """A structure laid out otherwise than the library's would have it read on behind the marker, as text."""
    runtime = LlamaCpp(written(source, tmp_path / "model.gguf", "16bit"), 200)
    tower = runtime._tower
    assert tower is not None
    library, kinds = tower._library, []
    of_kind = library.mtmd_input_chunk_get_type

    def watched(chunk: int) -> int:
        kinds.append((of_kind(chunk), library.mtmd_input_chunk_get_n_tokens(chunk)))
        return int(of_kind(chunk))

    library.mtmd_input_chunk_get_type = watched
    try:
        tower.embeddings(samples[0])
    finally:
        library.mtmd_input_chunk_get_type = of_kind
    assert {n for kind, n in kinds if kind == IMAGE} == {4}
    assert sum(n for kind, n in kinds if kind != IMAGE) < 40, "marks around the image, and tokens of its tile's name"


def test_quantize_to_two_files(seeing: Path, tmp_path: Path) -> None:
    settings = bitwright.Settings(
        container="gguf", sequences=24, length=32, held_out_sequences=1, held_out_length=32, dtype="float32", compare=False
    )
    out = tmp_path / "small.gguf"
    report = bitwright.quantize(seeing, out, "+20%", settings=settings, reporter=Reporter(quiet=True))
    assert report.result.nbytes == out.stat().st_size + mmproj_of(out).stat().st_size == _stored_nbytes(out)
    stock = next(e for e in report.verdict.entries if e.label == report.verdict.stock)
    assert report.result.divergence.kl < stock.divergence.kl
    assert "mmproj.gguf" in out.with_name("small.README.md").read_text()
    assert out.with_name("small.picture-1.png").is_file()
    with pytest.raises(BitwrightError, match="already there"):
        bitwright.quantize(seeing, out, "+20%", settings=settings, reporter=Reporter(quiet=True))


def test_llama_server_is_asked_about_a_picture(source: Source, tmp_path: Path) -> None:
    """In a process of its own, as people run it: both files, a chat message with an image, an answer."""
    path = written(source, tmp_path / "model.gguf", "q8_0")
    drawn(1, 3)[0].image.save(tmp_path / "picture.png")
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(path), str(mmproj_of(path)), str(tmp_path / "picture.png")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-600:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert "usage" in answer, answer
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["prompt_tokens"] > 2 * 4, "the image's tokens are among them"


SERVE = """
import base64, json, sys
import xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.mmproj.path = sys.argv[1:3]
parameters.n_ctx = 512
server = xllamacpp.Server(parameters)
image = "data:image/png;base64," + base64.b64encode(open(sys.argv[3], "rb").read()).decode()
content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "What?"}]
asked = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 4, "ignore_eos": True}
print(json.dumps(server.handle_chat_completions(asked)))
"""
