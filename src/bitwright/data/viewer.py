"""How a model is shown a picture: its own processor, pinned to Pillow's arithmetic, and its own chat template."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.data.chat_template import Conversation, TemplateFailedError, render_with
from bitwright.data.pictures import Picture, drawn
from bitwright.data.samples import IDS, Sample
from bitwright.errors import BitwrightError, fail, in_one_line
from bitwright.host.packages import pip_install
from bitwright.host.progress import Reporter
from bitwright.host.schedule import ANSWER as ASKED

BACKEND = "pil"  # of image processors; torchvision's makes other pixels
ANSWER = 32  # tokens that a model answers at most
UNUSED = ("attention_mask",)  # nothing is padded
PIXELS, PATCH = "pixel_values", 14  # pixels of a patch, where the processor does not say
VIDEOS = "video_processor"
LIBRARIES = {"torchvision": "torchvision", "pillow": "PIL"}  # that processors ask for, and their modules
OF_TOKENS = "cross_attention_mask"  # media with a row for each token


@contextmanager
def agreeing() -> Iterator[None]:
    """Say in words that a processor and a model which is run meanwhile disagree on how many tokens an image has."""
    try:
        yield
    except ValueError as error:
        if not re.search("image.* do not match", str(error), re.IGNORECASE):
            raise
        raise fail(
            "images/processor",
            "the image processor",
            saw=in_one_line(error),
            wanted="a processor that makes room for as many tokens of an image as the model has",
            help="copy the processor files of the model that this one was made from, or --calibration documentation",
        ) from error


@dataclass(frozen=True)
class Viewer:
    """The processor of a model that sees."""

    processor: Any
    tokenizer: Any

    @classmethod
    def of(cls, directory: Path, tokenizer: Any) -> Viewer:
        """The processor in ``directory``. Raises BitwrightError where there is none, or it cannot be used here."""
        try:
            processor = _processor(directory, tokenizer)
            if getattr(processor, "image_processor", None) is None:
                raise ValueError("no image processor among its files")
        except Exception as error:
            missing = next((name for name in LIBRARIES if name in str(error).lower() and not find_spec(LIBRARIES[name])), "")
            raise fail(
                "images/processor",
                directory,
                saw=in_one_line(error),
                wanted="the model's processor beside its weights, and the packages that it imports",
                help=pip_install(missing) if missing else "copy preprocessor_config.json and processor_config.json",
            ) from error
        return cls(processor, tokenizer)

    def key(self) -> str:
        """Hash of all that pixels depend on: the processor's settings, and what computes them."""
        import PIL

        settings = self.processor.image_processor.to_dict()
        made = [type(self.processor.image_processor).__name__, BACKEND, PIL.__version__, settings]
        return hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode()).hexdigest()[:20]

    def patches(self) -> int:
        """Rows that a tower is given for one picture, of the size that ours are drawn in; of a tower that merges patches in
        time, twice as many."""
        stated = getattr(self.processor.image_processor, "patch_size", None)
        side = stated if isinstance(stated, int) and stated > 0 else PATCH
        pixels = self.prompt(drawn(1, 0)[0]).media.get(PIXELS)
        return 0 if pixels is None else pixels.numel() // (3 * side * side)

    def prompt(self, picture: Picture) -> Sample:
        """The question about ``picture`` up to where the answer begins; nothing is scored yet."""
        content = [*[{"type": "image"}] * len(picture.images), {"type": "text", "text": picture.question}]
        try:
            text = render_with(self._templated, [Conversation([{"role": "user", "content": content}], prompt=True)])[0]
        except TemplateFailedError:  # no template: as base models are asked
            place = getattr(self.processor, "image_token", "<image>")
            text = f"{len(picture.images) * place}{picture.question}\n"
        bos = self.tokenizer.bos_token
        try:
            images = [picture.images] if picture.more else picture.images
            bare = not (bos and text.startswith(bos))
            made = self.processor(images=images, text=[text], return_tensors="pt", add_special_tokens=bare)
        except Exception as error:
            raise fail(
                "images/processor",
                type(self.processor).__name__,
                saw=in_one_line(error),
                wanted="a processor that takes images and a question",
                help="bitwright doctor MODEL, or calibrate on text: --calibration documentation",
            ) from error
        parts = {name: tensor for name, tensor in made.items() if isinstance(tensor, Tensor) and name not in UNUSED}
        n_tokens = parts[IDS].shape[1]
        inputs = {n: t[0] for n, t in parts.items() if t.shape == (1, n_tokens) and not t.is_floating_point()}
        media = {name: tensor for name, tensor in parts.items() if name not in inputs}
        return Sample(inputs, torch.zeros(n_tokens, dtype=torch.bool), media)

    @property
    def _templated(self) -> Any:
        """What has the chat template: the tokenizer, or the processor with the tokenizer's special tokens."""
        if getattr(self.tokenizer, "chat_template", None):
            return self.tokenizer
        return _WithTemplate(self.processor, self.tokenizer)

    def answered(self, prompt: Sample, answer: list[int]) -> Sample:
        """``prompt`` followed by the tokens ``answer``, which are what is scored."""
        n = len(answer)
        inputs = {name: torch.cat([tensor, tensor.new_zeros(n)]) for name, tensor in prompt.inputs.items()}
        inputs[IDS][-n:] = torch.tensor(answer)
        scored = torch.zeros(prompt.n_tokens + n, dtype=torch.bool)
        scored[prompt.n_tokens - 1 : -1] = True
        media = dict(prompt.media)
        if OF_TOKENS in media:
            rows = media[OF_TOKENS]
            media[OF_TOKENS] = torch.cat([rows, rows[:, -1:].expand(-1, n, *rows.shape[2:])], 1)
        return Sample(inputs, scored, media)

    def told(self, pictures: list[Picture]) -> list[Sample]:
        """Each picture with its question, and the answer that is known, followed by the end of the turn."""
        end = self.tokenizer.eos_token_id
        found = []
        for picture in pictures:
            ids = self.tokenizer(picture.answer, add_special_tokens=False).input_ids[:ANSWER]
            found.append(self.answered(self.prompt(picture), [*ids, *([end] if end is not None else [])]))
        return found

    @torch.no_grad()
    def asked(self, model: Any, pictures: list[Picture], seed: int, reporter: Reporter) -> list[Sample]:
        """Each picture with its question, and what ``model`` (resident) answers at temperature 1; no empty answers."""
        from transformers import GenerationConfig

        device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
        ends = _ends(model, self.tokenizer)
        banned = sorted({*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder} - set(ends))
        plain = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=ANSWER,
            eos_token_id=ends,
            pad_token_id=ends[0],
            suppress_tokens=banned or None,  # a place for an image that is none stops the model
        )
        own, model.generation_config = model.generation_config, GenerationConfig()
        found = []
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                for i, picture in enumerate(reporter.track(pictures, ASKED, len(pictures))):
                    torch.manual_seed(seed * 1_000_003 + i)
                    prompt = self.prompt(picture)
                    inputs = {name: t[None].to(device) for name, t in prompt.inputs.items()}
                    inputs |= {n: t.to(device, dtype if t.is_floating_point() else None) for n, t in prompt.media.items()}
                    with agreeing():
                        made = model.generate(**inputs, generation_config=plain)
                    answer = made[0, prompt.n_tokens :].tolist()
                    if answer:
                        found.append(self.answered(prompt, answer))
        finally:
            model.generation_config = own
        return found


@dataclass(frozen=True)
class _WithTemplate:
    """A processor's template beside the special tokens of its tokenizer."""

    processor: Any
    tokenizer: Any

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        found: dict[str, Any] = self.tokenizer.special_tokens_map
        return found

    def get_chat_template(self) -> str:
        if not getattr(self.processor, "chat_template", None):
            raise ValueError("no template")
        return str(self.processor.chat_template)


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Tokens with which the model ends an answer."""
    stated = getattr(model.generation_config, "eos_token_id", None)
    listed = stated if isinstance(stated, list) else [stated]
    return [end for end in dict.fromkeys((*listed, tokenizer.eos_token_id)) if isinstance(end, int)] or [0]


def _processor(directory: Path, tokenizer: Any) -> Any:
    """The model's processor. Videos take torchvision: where that is missing, a processor that knows them goes without."""
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils.import_utils import is_torchvision_available

    found: Any = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(directory)), None)
    if is_torchvision_available() or found is None or VIDEOS not in found.get_attributes():
        return AutoProcessor.from_pretrained(directory, backend=BACKEND)

    class WithoutVideos(found):
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(name, argument)

    stated, _ = found.get_processor_dict(directory)
    known = set(inspect.signature(found.__init__).parameters) - {"self", "image_processor", "tokenizer", VIDEOS}
    own = {name: value for name, value in stated.items() if name in known}
    return WithoutVideos(AutoImageProcessor.from_pretrained(directory, backend=BACKEND), tokenizer, **{VIDEOS: None}, **own)


def viewer_of(directory: Path, config: dict[str, Any], tokenizer: Any) -> tuple[Viewer | None, str]:
    """The viewer of a model that sees; None for one that reads text alone, with a note where pictures cannot be shown to it."""
    if not config.get("vision_config"):
        return None, ""
    try:
        return Viewer.of(directory, tokenizer), ""
    except BitwrightError as error:
        return None, f"images are left out: {error.finding.saw}; {error.finding.help}"
