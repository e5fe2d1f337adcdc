"""Peak memory on the shapes of Qwen2-VL-2B, and what an image costs beside text.

The model has random weights (2.2 billion parameters, bfloat16) and SmolLM2's tokenizer. It is measured in a process of its own,
whose peak resident set is read when ``--measured`` text blocks are done; those that follow have the same shapes or smaller.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLConfig, Qwen2VLImageProcessorPil

from benchmarks.cost import bare_nbytes, peak_nbytes
from benchmarks.models import reference
from bitwright import Settings
from bitwright.checkpoint.output import atomic_output
from bitwright.checkpoint.workdir import WorkDir
from bitwright.checkpoint.writer import SafetensorsWriter, TensorPlan
from bitwright.data.folds import Folds
from bitwright.data.pictures import drawn
from bitwright.data.samples import Sample
from bitwright.host.progress import Reporter
from bitwright.measure.subject import Subject
from bitwright.measure.sweep import Sweep
from bitwright.models.spec import Weight

TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
}
VISION: dict[str, Any] = {
    "depth": 32,
    "embed_dim": 1280,
    "hidden_size": 1536,
    "num_heads": 16,
    "mlp_ratio": 4,
    "patch_size": 14,
}
SEQUENCES = 12  # of calibration, for the peak
VISION_MERGE = 4  # patches that become one token
MEASURE = """
from bitwright import Settings, measure
measure({source!r}, {out!r}, workdir={work!r}, settings=Settings(sequences={sequences}, length=128, calibration='installed'))
"""


def random_qwen2_vl(directory: Path, text_blocks: int, vision_blocks: int) -> int:
    """Write a random Qwen2-VL with a processor, one tensor at a time; returns its parameters."""
    tokenizer = AutoTokenizer.from_pretrained(reference("smollm2"))
    tokenizer.add_special_tokens({"additional_special_tokens": list(TOKENS)})
    tokenizer.chat_template = TEMPLATE
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(TOKENS))
    config = Qwen2VLConfig(
        text_config=TEXT | {"num_hidden_layers": text_blocks},
        vision_config=VISION | {"depth": vision_blocks},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    with atomic_output(directory, is_file=False) as scratch:
        writer = SafetensorsWriter(scratch, [TensorPlan(name, "BF16", shape) for name, shape in shapes.items()])
        for name, shape in shapes.items():
            value = torch.ones(shape) if name.endswith("norm.weight") or ".norm" in name else torch.randn(shape).mul_(0.02)
            writer.put(name, value.bfloat16())
        writer.close()
        config.architectures = [type(model).__name__]
        config.save_pretrained(scratch)
        Qwen2VLImageProcessorPil().save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def memory(options: argparse.Namespace) -> dict[str, float]:
    """Peak above the bare libraries until ``--measured`` text blocks are done."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        parameters = random_qwen2_vl(scratch / "model", options.text_blocks, options.vision_blocks)
        bare = bare_nbytes()
        code = MEASURE.format(
            source=str(scratch / "model"), out=str(scratch / "s.json"), work=str(scratch / "work"), sequences=options.sequences
        )
        peak, ends = peak_nbytes(code, scratch / "work", options.measured)
    return {
        "parameters": parameters,
        "above_libraries_gb": (peak - bare) / 1e9,
        "units_measured": len(ends),
        "seconds_to_there": ends[-1],
    }


def cost(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the forward sweep and labels: questions about pictures over texts of as many tokens, and over texts of as many
    tokens and patches."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "model"
        random_qwen2_vl(source, options.text_blocks, options.vision_blocks)
        subject = Subject.open(source, Settings(dtype=options.dtype))
        assert subject.viewer is not None
        shown = subject.viewer.told(drawn(6, 0))
        kinds = {"images": shown, "texts": [_like(sample, 0) for sample in shown]}
        kinds["long texts"] = [_like(sample, len(sample.media["pixel_values"])) for sample in shown]
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for run in range(options.repeats):
            for kind, samples in kinds.items():
                sweep = Sweep(
                    subject,
                    Folds(tuple(samples[:2]), tuple(samples[2:4]), tuple(samples[4:]), kind),
                    WorkDir(Path(name) / f"{kind}-{run}", "key"),
                    Reporter(quiet=True),
                )
                start = time.perf_counter()
                sweep.prepare()
                seconds[kind].append(time.perf_counter() - start)
        images, plain, long = (statistics.median(seconds[kind]) for kind in kinds)
        n_tokens = sum(sample.n_tokens for sample in shown) / len(shown)
        n_patches = sum(len(sample.media["pixel_values"]) for sample in shown) / len(shown)
        rows = {"vision": n_patches, "projector": n_patches / VISION_MERGE, "text": n_tokens}
        products = {part: rows.get(part, 0) * sum(w.n_rows * w.n_cols for w in own) for part, own in _parts(subject).items()}
        return {
            "tokens": n_tokens,
            "patches": n_patches,
            "seconds_images": images,
            "seconds_texts": plain,
            "seconds_long_texts": long,
            "ratio": images / plain,
            "ratio_to_long_texts": images / long,
            "ratio_of_the_products_in_blocks": sum(products.values()) / products["text"],
        }


def _like(sample: Sample, n_more: int) -> Sample:
    """A text of as many tokens as ``sample``, behind ``n_more`` others; as many of them are scored."""
    ids = torch.randint(100, 40_000, (n_more + sample.n_tokens,))
    scored = None if sample.scored is None else torch.cat([torch.zeros(n_more, dtype=torch.bool), sample.scored])
    return Sample(Sample.of(ids).inputs, scored)


def _parts(subject: Subject) -> dict[str, list[Weight]]:
    """The weights of each part of the model."""
    found: dict[str, list[Weight]] = {}
    for weight in subject.source.spec.weights:
        found.setdefault(weight.group, []).append(weight)
    return found
