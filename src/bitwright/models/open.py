"""From a checkpoint to its transformers class, without weights, with every parameter accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.errors import fail, in_one_line
from bitwright.models.names import match_names
from bitwright.models.roles import describe, with_buffers
from bitwright.models.skeleton import Skeleton
from bitwright.models.source import Source
from bitwright.models.spec import Kind
from bitwright.models.stacks import stacks_of


def open_model(checkpoint: Checkpoint, trust_remote_code: bool = False, vocabulary: frozenset[Kind] = frozenset()) -> Skeleton:
    """Instantiate the class that the config names, without weights, and account for every parameter.

    ``vocabulary``: which of embedding and head are weights to be quantized; the others are kept.

    Raises BitwrightError for a class without decoder blocks, a parameter that is not understood (fused experts), a parameter
    without a tensor, or a tensor without a parameter.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint.directory, trust_remote_code=trust_remote_code)
        with init_empty_weights(include_buffers=False):
            model = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise fail(
            "model/class",
            checkpoint.directory / "config.json",
            saw=in_one_line(error),
            wanted="a configuration that a class of transformers understands, for text or for images and text",
            help="if the model brings its own code and you trust it: --trust-remote-code",
        ) from error
    model.tie_weights()
    model.eval().requires_grad_(False)
    text = config.get_text_config()
    spec = describe(model, stacks_of(model, config), vocabulary)
    stored = match_names(checkpoint, model)
    spec = with_buffers(spec, model, stored)
    half = all(checkpoint.refs[stored[weight.name]].dtype == "F16" for weight in spec.weights)
    source = Source(checkpoint, spec, stored, text, _wide(model, stored, half))
    weights = tuple(replace(weight, as_stored=source.written_as(weight.name)) for weight in spec.weights)
    return Skeleton(replace(source, spec=replace(spec, weights=weights)), model)


def auto_class(config: Any) -> Any:
    """The auto class of transformers that builds the whole model of ``config``: towers too, where it has them.

    For some families the class for text alone would take the same configuration and leave the towers out.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    sees = getattr(config, "vision_config", None) is not None and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def _wide(model: Any, names: Iterable[str], half: bool) -> frozenset[str]:
    """Those of ``names`` that transformers keeps in 32 bit when a model of this class is loaded in 16; ``half``: in float16."""
    modules = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if half:
        modules |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    kept = [re.compile(rf"(^|\.){re.escape(module)}($|\.)") for module in modules]
    return frozenset(name for name in names if any(pattern.search(name) for pattern in kept))
