"""Checkpoints in transformers, with the quantization library that they name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, GgufConfig
from transformers.generation.streamers import BaseStreamer
from transformers.quantizers.auto import AutoQuantizationConfig

from bitwright.data.samples import Batch, Sample, alike
from bitwright.errors import fail
from bitwright.models.open import auto_class
from bitwright.runtimes.base import Loaded

FORWARD_TOKENS = 2048  # of one forward pass: a quantized model unpacks its weights once for all of them
CHUNK_ENTRIES = 1 << 25  # logits that exist at once: 128 MiB in float32


def accepts(path: str) -> bool:
    """Whether this runtime loads ``path``: directories, and GGUF files, which it decodes to 16 bit."""
    return True


def load(candidate: dict[str, Any], device: str, n_tokens: int) -> TransformersModel:
    """The model as any user would load it; ``quantization`` asks its library to quantize on the way."""
    options: dict[str, Any] = {"dtype": getattr(torch, candidate["dtype"])}
    path = Path(candidate["path"])
    if path.is_file():
        options |= {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
        path = path.parent
    if candidate["quantization"]:
        options["quantization_config"] = AutoQuantizationConfig.from_dict(candidate["quantization"])
    if device != "cpu":
        options["device_map"] = device
    trust = candidate["trust_remote_code"]
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust, **{k: v for k, v in options.items() if k == "gguf_file"})
    model = auto_class(config).from_pretrained(path, trust_remote_code=trust, **options).eval()
    _as_stored(model)
    with torch.no_grad():  # compressed-tensors unpacks its weights in the first pass of the whole model
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device), use_cache=False)
    if candidate["adapter"]:
        model = _adapted(model, candidate["adapter"])
    return TransformersModel(model, device)


def _adapted(model: Any, adapter: str) -> Any:
    """``model`` with the adapter in the directory ``adapter`` in its layers. Raises BitwrightError where PEFT does not find a
    place for each of its tensors, of which it only warns."""
    from peft import PeftModel, get_peft_model_state_dict, load_peft_weights

    wanted, found = load_peft_weights(adapter, device="cpu"), PeftModel.from_pretrained(model, adapter)
    placed = get_peft_model_state_dict(found)
    lost = [name for name, value in wanted.items() if name not in placed or not torch.equal(placed[name].cpu(), value)]
    if lost:
        raise fail(
            "evaluate/adapter",
            adapter,
            saw=f"PEFT loads {len(wanted) - len(lost)} of {len(wanted)} tensors, {lost[0]} not",
            wanted="an adapter that PEFT loads whole",
            help="train other --targets",
        )
    return found.get_base_model()


def _as_stored(model: Any) -> None:
    """Let ``model`` compute with its weights as the file holds them.

    On processors that multiply bfloat16, bitsandbytes repacks a 4-bit weight on its first use and rounds the scales of its
    blocks to bfloat16: noise of one kind of machine, not of the file. What was repacked must not be saved either.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


class _Told(BaseStreamer):
    """Passes on each id but for those that end a text; what comes first is the prompt."""

    def __init__(self, tell: Callable[[int], None], ends: Sequence[int]) -> None:
        self._tell, self._ends, self._begun = tell, set(ends), False

    def put(self, value: Tensor) -> None:
        for token in value.reshape(-1).tolist() if self._begun else ():
            if token not in self._ends:
                self._tell(token)
        self._begun = True

    def end(self) -> None: ...


class TransformersModel(Loaded):
    """A model class of transformers."""

    def __init__(self, model: Any, device: str) -> None:
        self.model, self.device = model, device

    def widen(self) -> None:
        """Asking transformers for float32 does not reach a file that is quantized already: what is not quantized would keep
        the file's type, and what is would be multiplied in the type that the file names."""
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if tensor.dtype in (torch.bfloat16, torch.float16) and not hasattr(tensor, "quant_state"):  # codes, for FSDP
                tensor.data = tensor.data.float()
        for module in self.model.modules():
            if hasattr(module, "compute_dtype"):
                module.compute_dtype = torch.float32

    def logits(self, samples: Sequence[Sample]) -> Iterator[Iterable[Tensor]]:
        """Samples of equal shapes share a forward pass, which comes when the first of them is wanted. The output head runs part
        by part afterwards, so that the logits of a whole text never exist."""
        step = max(1, CHUNK_ENTRIES // self.model.config.get_text_config().vocab_size)
        together = {i: at for at in alike(samples, FORWARD_TOKENS, seeing=True) for i in at}
        ahead: dict[int, tuple[Any, Tensor]] = {}
        for i in range(len(samples)):
            if i not in ahead:
                inputs = self._placed(Batch.of(samples, together[i]).inputs)
                with torch.no_grad():
                    body = self.model.base_model(**inputs, use_cache=False)
                for at, states in zip(together[i], body.last_hidden_state, strict=True):
                    ahead[at] = type(body), states[samples[at].positions.to(states.device)]
                del body, inputs
            yield self._parts(*ahead.pop(i), step)

    def _parts(self, kind: type, states: Tensor, step: int) -> Iterable[Tensor]:
        return (self._head(kind(last_hidden_state=part[None])) for part in states.split(step))

    def _placed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: t.to(self.device, self.model.dtype if t.is_floating_point() else None) for n, t in inputs.items()}

    @torch.no_grad()
    def _head(self, recorded: Any) -> Tensor:
        """Logits [t, V] of what the body is recorded to return for one text: the class's own forward runs on the recording,
        so that scalings and caps of the logits are the library's."""
        model, body, hidden = self.model, self.model.base_model, recorded.last_hidden_state
        hooked = vars(body).get("forward")  # accelerate puts one there; a bound method of its own would keep the model alive
        body.forward = lambda *_, **__: recorded
        try:
            ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
            found: Tensor = model(input_ids=ids, use_cache=False).logits[0]
            return found
        finally:
            del body.forward
            if hooked is not None:
                body.forward = hooked

    @torch.no_grad()
    def greedy(self, prompts: Tensor, count: int) -> Tensor:
        model, ids = self.model, prompts.to(self.device)
        own = model.generation_config
        model.generation_config = GenerationConfig()  # generate() fills what is left open from it: penalties, ends
        try:
            plain = GenerationConfig(do_sample=False, max_new_tokens=count, pad_token_id=0)
            made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)
        finally:
            model.generation_config = own
        return torch.as_tensor(made)[:, prompts.shape[1] :].cpu()

    @torch.no_grad()
    def answer(
        self, prompt: Sample, count: int, tell: Callable[[int], None] | None = None, temperature: float = 0.0
    ) -> list[int]:
        model = self.model
        inputs = self._placed({name: tensor[None] for name, tensor in prompt.inputs.items()} | prompt.media)
        own, model.generation_config = model.generation_config, GenerationConfig()
        ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        ends = [end for end in ends if isinstance(end, int)]
        try:
            how = (
                {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
                if temperature
                else {"do_sample": False}
            )
            plain = GenerationConfig(max_new_tokens=count, eos_token_id=ends or None, pad_token_id=0, **how)
            streamer = _Told(tell, ends) if tell else None
            made = model.generate(**inputs, generation_config=plain, streamer=streamer)[0, prompt.n_tokens :].tolist()
        finally:
            model.generation_config = own
        return [token for token in made if token not in ends]

    def for_harness(self, tokenizer: Any, longest: int, batch: int) -> Any:
        from lm_eval.models.huggingface import HFLM  # a large library, for tasks alone

        return HFLM(pretrained=self.model, tokenizer=tokenizer, batch_size=batch, max_length=longest)
