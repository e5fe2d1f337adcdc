"""Small real models for the tests: stock transformers classes, random weights, a tokenizer trained on the spot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: threads of two torch processes would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"

import jaxtyping

SHAPED = (  # pure functions whose arrays are checked against the shapes that their annotations name
    "bitwright.data.draw",
    "bitwright.evaluate.divergence",
    "bitwright.formats.group.words",
    "bitwright.measure.curvature",
    "bitwright.rounding.kernels",
)
CHECKED = {
    "data",
    "evaluate",
    "formats",
    "measure",
    "rounding",
}  # folders of tests that check them; elsewhere they cost a third
jaxtyping.install_import_hook(SHAPED, "beartype.beartype")

import hypothesis
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from bitwright.data import samples
from bitwright.evaluate import process
from bitwright.report import draw, pictures
from bitwright.settings import Settings
from tests.nursery import REAL, Nursery

hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")  # a red run means a change, not another draw

VOCAB = 512
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 24},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "phi3": {"pad_token_id": 0},
    "gemma3_text": {"head_dim": 32, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256, "n_inner": 160},
}
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY = Settings(  # a whole job on a random model in seconds
    sequences=8, length=32, held_out_sequences=2, held_out_length=32, dtype="float32", device="cpu", calibration="documentation"
)
Build = Callable[..., Path]
LONGEST = (  # files of tests that run whole jobs in fresh processes, the longest first
    *("test_pipeline", "test_pipeline_gguf", "test_qat", "test_repair", "test_forecast", "test_edited", "test_terminal"),
    *("test_demo_vision", "test_finetune", "test_base", "test_pictures", "test_source", "test_tasks", "test_talk"),
    *("test_gguf_vision", "test_gguf", "test_page", "test_pipeline_vision", "test_cli", "test_compressed_tensors"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first: a worker that got it at the end would be waited for."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no accelerator here"))


def _outlines(specs: list[dict[str, Any]]) -> list[str]:
    """In the place of charts, which take a process of its own 1.6 s."""
    return ['<svg class="marks"></svg>'] * len(specs)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Shapes are checked where arrays are what is tested, and charts drawn where the report is."""
    folder = item.path.parent.name
    jaxtyping.config.update("jaxtyping_disable", folder not in CHECKED)
    pictures.svgs = draw.svgs if folder == "report" else _outlines


@pytest.fixture(scope="session", autouse=True)
def less_reading() -> None:
    """A job on a random model needs few tokens of the documentation: turning 8 million characters into tokens takes 4 s."""
    samples.LEAST_READ = 2**18  # for the session, so not by monkeypatch


@pytest.fixture(scope="session", autouse=True)
def nursery() -> Iterator[Nursery | None]:
    """Workers begin with their libraries imported, where a fork can do that; with a GPU it cannot."""
    if not sys.platform.startswith("linux") or torch.cuda.is_available():
        yield None
        return
    held = Nursery()
    process._run = held.run  # for the session, so not by monkeypatch
    yield held
    process._run = REAL
    held.close()


Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(nursery: Nursery | None) -> Shell:
    """shell("quantize", ..., cwd=FOLDER) is what a person types there."""

    def started(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bitwright.cli.main", *words]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)

    return nursery.shell if nursery else started


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Trained on the spot on the language reference, with BOS, EOS and a chat template."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(list(topics.values())[:40], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    return fast


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def sentencepiece_style() -> PreTrainedTokenizerFast:
    """As the tokenizers of Llama 2, Phi 3 and Gemma: words begin with a mark, unknown characters fall back to bytes."""
    special = ["<unk>", "<s>", "</s>"]
    names = special + [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    texts = [text[:4000] for text in list(topics.values())[:20]]
    alphabet = "".join(sorted(set("".join(texts)) & set(map(chr, range(32, 127))) - {" "}))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(names), initial_alphabet=list(alphabet), limit_alphabet=len(alphabet) + 1, show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    learned = json.loads(trained.to_str())["model"]
    vocab = {name: i for i, name in enumerate(names)}
    vocab |= {token: len(names) + i for token, i in learned["vocab"].items()}
    merges = [tuple(pair) for pair in learned["merges"]]
    core = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def roughen(model: torch.nn.Module) -> None:
    """Matrices larger than the default start, so that quantization has something to damage."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)


@pytest.fixture(scope="session")
def build(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast, sentencepiece_style: PreTrainedTokenizerFast
) -> Build:
    """build("llama", hidden_size=128, ...) writes such a model once and returns its directory."""
    made: dict[str, Path] = {}

    def make(architecture: str = "llama", dtype: torch.dtype = torch.bfloat16, **overrides: Any) -> Path:
        key = f"{architecture} {dtype} {sorted(overrides.items())}"
        if key not in made:
            options = COMMON | ARCHITECTURES.get(architecture, {}) | overrides
            if architecture == "gpt2":
                options = {
                    k: v for k, v in options.items() if k not in COMMON or k in ("vocab_size", "bos_token_id", "eos_token_id")
                }
            config = transformers.AutoConfig.for_model(architecture, **options)
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            roughen(model)
            out = tmp_path_factory.mktemp("models") / architecture
            model.to(dtype).save_pretrained(out)
            chosen = sentencepiece_style if architecture.startswith(("phi3", "gemma")) else tokenizer
            chosen.save_pretrained(out)
            made[key] = out
        return made[key]

    return make
