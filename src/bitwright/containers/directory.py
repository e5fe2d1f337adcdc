"""Checkpoints that are a directory of safetensors with a config.json, as transformers writes and reads them."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from bitwright.checkpoint.headers import TensorRef, read_headers
from bitwright.checkpoint.tensors import read_tensor
from bitwright.checkpoint.writer import SafetensorsWriter, TensorPlan
from bitwright.containers.base import Container, Writer, require_same_weights
from bitwright.formats.base import SIXTEEN_BIT, Format, Packed
from bitwright.models.source import Source
from bitwright.models.spec import ModelSpec, Role, Weight
from bitwright.plan import Plan

TEXTS = (".json", ".model", ".txt", ".jinja")  # tokenizers, templates and settings
COMPANIONS = ("generation_config.json", "chat_template.jinja", "LICENSE")
PROMPT = 'ids = tokenizer("Once upon a time", return_tensors="pt")'
CHAT_PROMPT = """messages = [{"role": "user", "content": "Hello!"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""
SEEING_USAGE = """```python
# pip install transformers accelerate pillow {packages}
from transformers import AutoModelForImageTextToText, AutoProcessor

path = "{name}"
processor = AutoProcessor.from_pretrained(path)
model = AutoModelForImageTextToText.from_pretrained(path, device_map="auto")
content = [{{"type": "image", "url": "picture.jpg"}}, {{"type": "text", "text": "What is in the picture?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device, model.dtype)
print(processor.decode(model.generate(**inputs, max_new_tokens=100)[0]))
```"""
OURS = ("config.json", "bitwright.json", "report.json", "model.safetensors.index.json")  # written anew, or of another model


class DirectoryContainer(Container):
    """What containers of this kind share. ``layout`` and ``stored`` say which tensors a weight becomes."""

    runtime = "transformers"
    library = "transformers"
    packages: ClassVar[str]  # that loading takes, beside transformers

    @abstractmethod
    def layout(self, weight: Weight, format: Any, source: Source) -> list[TensorPlan]:
        """The tensors that store ``weight`` in ``format``, which is not 16 bit."""

    @abstractmethod
    def stored(self, weight: Weight, packed: Packed, source: Source) -> dict[str, Tensor]:
        """Their values, by the same names and in the same order."""

    @abstractmethod
    def taken(self, weight: Weight, refs: Mapping[str, TensorRef], config: Any) -> Packed | None:
        """The codes of ``weight`` in a checkpoint with the tensors ``refs``; None where it is not quantized there."""

    @abstractmethod
    def quantization_config(self, source: Source, plan: Plan) -> dict[str, Any]:
        """The block of config.json that the runtimes read."""

    def usage(self, name: str, chat: bool, sees: bool = False) -> str:
        if sees:
            return SEEING_USAGE.format(name=name, packages=self.packages)
        return f"""```python
# pip install transformers accelerate {self.packages}
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "{name}"
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, device_map="auto")
{CHAT_PROMPT if chat else PROMPT}
print(tokenizer.decode(model.generate(**ids.to(model.device), max_new_tokens=100)[0]))
```"""

    def loading(self, path: str, sees: bool = False) -> tuple[str, ...]:
        model, words = ("AutoModelForImageTextToText", "AutoProcessor") if sees else ("AutoModelForCausalLM", "AutoTokenizer")
        return (
            f"from transformers import {model}, {words}",
            f"model = {model}.from_pretrained({path!r})",
            f"{'processor' if sees else 'tokenizer'} = {words}.from_pretrained({path!r})",
        )

    def nbytes(self, weight: Weight, format: Format, source: Source) -> int:
        if format is SIXTEEN_BIT:
            return 2 * weight.n_rows * weight.n_cols
        return sum(plan.nbytes for plan in self.layout(weight, format, source))

    def kept_nbytes(self, source: Source) -> int:
        return source.kept_nbytes

    def writer(self, out: Path, source: Source, plan: Plan) -> DirectoryWriter:
        return DirectoryWriter(self, out, source, plan)

    def read(self, out: Path, weights: Any) -> dict[str, Packed]:
        refs = read_headers(out)
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        found = {weight.name: self.taken(weight, refs, config) for weight in weights}
        return {name: packed for name, packed in found.items() if packed is not None}


class DirectoryWriter(Writer):
    """Weights tensor by tensor; config, tokenizer and companions at the end."""

    def __init__(self, container: DirectoryContainer, out: Path, source: Source, plan: Plan) -> None:
        self.container, self.out, self.source, self.plan = container, out, source, plan
        choices = require_same_weights(plan, source.spec)
        self.weights = {weight.name: weight for weight in source.spec.weights}
        kept = tuple(k.name for k in source.spec.kept if k.tied_to is None)
        self._parameters = kept + tuple(self.weights)
        plans: list[TensorPlan] = []
        for name in self._parameters:
            format = container.formats[choices[name].format] if name in choices else SIXTEEN_BIT
            if format is SIXTEEN_BIT:
                plans.append(TensorPlan(source.written_as(name), source.written_name(name), source.spec.shape(name)))
            else:
                plans += container.layout(self.weights[name], format, source)
        self._tensors = SafetensorsWriter(out, plans)

    @property
    def parameters(self) -> tuple[str, ...]:
        return self._parameters

    def put(self, parameter: str, value: Tensor | Packed) -> None:
        if isinstance(value, Packed):
            for name, tensor in self.container.stored(self.weights[parameter], value, self.source).items():
                self._tensors.put(name, tensor)
        else:
            self._tensors.put(self.source.written_as(parameter), value.to(self.source.written_dtype(parameter)))

    def close(self) -> int:
        self._tensors.close()
        config = dict(self.source.checkpoint.config)
        config.pop("torch_dtype", None)
        config.pop("_name_or_path", None)  # where somebody's source lay
        config["dtype"] = str(self.source.dtype).removeprefix("torch.")
        config["architectures"] = [self.source.spec.architecture]
        config["quantization_config"] = self.container.quantization_config(self.source, self.plan)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (self.out / "config.json").write_text(text, encoding="utf-8")
        copy_companions(self.source.checkpoint.directory, self.out)
        return self._tensors.nbytes

    def release(self) -> None:
        self._tensors.release()


def copy_companions(source: Path, out: Path) -> None:
    """Tokenizer and generation files, byte for byte as in ``source``; never code, pickles or weights."""
    for path in sorted(source.iterdir()):
        text = path.suffix in TEXTS and path.name not in OURS
        if path.is_file() and (text or path.name in COMPANIONS):
            (out / path.name).write_bytes(path.read_bytes())


def left_in_16bit(spec: ModelSpec, plan: Plan) -> list[str]:
    """Modules that a runtime must not quantize: the plan's 16-bit choices, and every linear outside the blocks.

    One entry for each module, never a shorter one that would also match modules of another tower; in the spellings of the
    model and of the checkpoint, of which versions of transformers match either.
    """
    tensors = {weight.name: weight.tensor for weight in spec.weights}
    chosen = [choice.weight for choice in plan.choices if choice.format == SIXTEEN_BIT.name]
    outside = [kept.name for kept in spec.kept if kept.role in (Role.HEAD, Role.OUTSIDE) and kept.name.endswith(".weight")]
    spelled = [spelling for name in (*chosen, *outside) for spelling in (name, tensors.get(name, name))]
    return [name.removesuffix(".weight") for name in dict.fromkeys(spelled)]


def tensors_of(refs: Mapping[str, TensorRef], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Part -> tensor, for the parts whose tensor ``names`` says and the checkpoint has."""
    return {part: read_tensor(refs[name]) for part, name in names.items() if name in refs}
