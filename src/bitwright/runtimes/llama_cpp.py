"""llama.cpp through its C interface, as the wheel ``xllamacpp`` carries it: logits, tokens, and its own encoders.

Structures that are handed over by value are declared longer than they are: only fields at their start are set, which
have kept their places since 2023. Source: include/llama.h of llama.cpp.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwright.data.samples import Sample
from bitwright.errors import fail
from bitwright.host.packages import not_installed
from bitwright.runtimes.base import Loaded
from bitwright.runtimes.mtmd import Seen, VisionTower, segments, unseen

CHUNK_TOKENS = 128  # logits of which are held at once
MMPROJ = "mmproj.gguf"  # beside the file of a model that sees
GGUF_ADAPTER = "adapter.gguf"  # beside what PEFT reads
STRUCTURE_BYTES = 1024  # more than any parameter structure has

_POSITIONS = ctypes.POINTER(ctypes.c_int32)
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _ModelParameters(ctypes.Structure):
    _fields_ = [("opaque", ctypes.c_byte * STRUCTURE_BYTES)]


class _ContextParameters(ctypes.Structure):
    _fields_ = [
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("opaque", ctypes.c_byte * STRUCTURE_BYTES),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", _POSITIONS),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def available() -> bool:
    """Whether the wheel is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def accepts(path: str) -> bool:
    """Whether this runtime loads ``path``: a GGUF file, where the wheel is installed."""
    return path.endswith(".gguf") and Path(path).is_file() and available()


def load(candidate: dict[str, Any], device: str, n_tokens: int) -> LlamaCpp:
    """The file ``candidate["path"]``, on the processor whatever ``device`` says."""
    adapter = Path(candidate["adapter"]) / GGUF_ADAPTER if candidate["adapter"] else None
    return LlamaCpp(Path(candidate["path"]), n_tokens, adapter=adapter)


def mmproj_of(path: Path) -> Path:
    """Where the vision tower of the file ``path`` lies, if it has one."""
    return path.with_name(f"{path.stem}.{MMPROJ}")


class LlamaCpp(Loaded):
    """A GGUF file in llama.cpp, on the processor."""

    def __init__(self, path: Path, n_tokens: int = 0, n_threads: int = 0, adapter: Path | None = None) -> None:
        """Load ``path`` for sequences of up to ``n_tokens``; 0: the vocabulary alone. ``adapter``: a .gguf file with a low-rank
        change of it. Raises BitwrightError where llama.cpp does not load them."""
        self._library = library()
        parameters = self._library.llama_model_default_params()
        self._model = self._library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise fail(
                "gguf/load",
                path,
                saw=_last_message(),
                wanted="llama.cpp loads the file",
                help="pip install --upgrade xllamacpp",
            )
        lora = self._library.llama_adapter_lora_init(self._model, str(adapter).encode()) if adapter else None
        if adapter and not lora:
            raise fail(
                "gguf/adapter", adapter, saw=_last_message(), wanted=f"an adapter for {path.name}", help="train it again"
            )
        self._vocabulary = self._library.llama_model_get_vocab(self._model)
        self.n_tokens, self.n_vocabulary = n_tokens, int(self._library.llama_vocab_n_tokens(self._vocabulary))
        self._context = None
        self._tower: VisionTower | None = None
        if n_tokens and mmproj_of(path).is_file():
            width = self._library.llama_model_n_embd_inp(self._model)
            self._tower = VisionTower(self._library, mmproj_of(path), self._model, width)
        if n_tokens:
            options = self._library.llama_context_default_params()
            together = max(CHUNK_TOKENS, n_tokens) if self._both_ways else CHUNK_TOKENS
            options.n_ctx, options.n_batch, options.n_ubatch = n_tokens, together, together
            self._context = self._library.llama_init_from_model(self._model, options)
            if not self._context:
                raise fail(
                    "gguf/context",
                    path,
                    saw=_last_message(),
                    wanted=f"memory for the context of {n_tokens} tokens",
                    help="shorter texts or answers: --length, --tokens",
                )
            if lora:  # which the model releases
                self._library.llama_set_adapters_lora(self._context, (ctypes.c_void_p * 1)(lora), 1, (ctypes.c_float * 1)(1.0))
            threads = n_threads or available_cores()
            self._library.llama_set_n_threads(self._context, threads, threads)

    @property
    def _both_ways(self) -> bool:
        """Whether the tokens of an image attend to each other in both directions, which takes them all in one pass."""
        return self._tower is not None and self._tower.both_ways

    def close(self) -> None:
        """Release the model; it must not be used afterwards."""
        if self._tower:
            self._tower.close()
        if self._context:
            self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)
        self._context = self._model = None

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()

    def widen(self) -> None:
        pass  # how a block is multiplied is settled by its format

    def logits(self, samples: Sequence[Sample]) -> Iterator[Iterable[Tensor]]:
        for sample in samples:
            yield self._scored_parts(sample)

    def _scored_parts(self, sample: Sample) -> Iterator[Tensor]:
        """Logits at the sample's positions."""
        counts = torch.ones(sample.n_tokens, dtype=torch.bool) if sample.scored is None else sample.scored
        at = 0
        for part in self.logit_parts(*self._segments(sample)):
            here = counts[at : at + len(part)]
            at += len(part)
            if here.any():
                yield part[here]

    def _segments(self, sample: Sample) -> list[Tensor | Seen]:
        """What is decoded one after the other: ids, and embeddings in the places of images."""
        if not sample.media:
            return [sample.ids]
        if self._tower is None:
            raise unseen("an image, and no vision tower beside the file")
        return segments(sample, self._tower.embeddings(sample))

    def last_logits(self, ids: Tensor, count: int) -> Tensor:
        """Logits float32 [count, V] of the last ``count`` of ``ids`` [T]."""
        kept: list[Tensor] = []
        for part in self.logit_parts(ids):
            kept = [*kept, part]
            while len(kept) > 1 and sum(len(p) for p in kept[1:]) >= count:
                kept.pop(0)
        return torch.cat(kept)[-count:]

    def logit_parts(self, *parts: Tensor | Seen) -> Iterator[Tensor]:
        """Logits of ids and images from the beginning of a text, in parts of CHUNK_TOKENS tokens; an image's, zeros, in one."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        at = 0
        for part in parts:
            if isinstance(part, Seen):
                yield self._looked_at(part, at)
                at += part.n_positions
                continue
            for chunk in part.split(CHUNK_TOKENS):
                yield self._decode(chunk, at)
                at += len(chunk)

    def _looked_at(self, image: Seen, start: int) -> Tensor:
        """Decode ``image`` from position ``start`` on. No text follows from its tokens: what is returned for them is zero."""
        together = len(image) if self._both_ways else CHUNK_TOKENS
        positions = image.positions(start)
        self._library.llama_set_causal_attn(self._context, not self._both_ways)
        try:
            for rows, places in zip(image.rows.split(together), positions.split(together, -1), strict=True):
                batch = self._library.llama_batch_init(len(rows), rows.shape[1], 1)
                own = ctypes.cast(batch.pos, ctypes.c_void_p).value or 0  # room for a position a token; a grid has four
                try:
                    ctypes.memmove(batch.embd, rows.contiguous().numpy().ctypes.data, 4 * rows.numel())
                    kept = places.contiguous().numpy()
                    batch.pos = kept.ctypes.data_as(_POSITIONS)
                    self._run(batch, len(rows), wanted=False)
                finally:
                    batch.pos = ctypes.cast(own, _POSITIONS)
                    self._library.llama_batch_free(batch)
        finally:
            self._library.llama_set_causal_attn(self._context, True)
        return torch.zeros(1, self.n_vocabulary).expand(len(image), -1)

    def _decode(self, ids: Tensor, start: int) -> Tensor:
        """Logits after each of ``ids`` [t], from position ``start`` on."""
        batch = self._library.llama_batch_init(len(ids), 0, 1)
        try:
            for i, token in enumerate(ids.tolist()):
                batch.pos[i], batch.token[i] = start + i, token
            self._run(batch, len(ids), wanted=True)
            pointer = self._library.llama_get_logits(self._context)
            return torch.from_numpy(np.ctypeslib.as_array(pointer, (len(ids), self.n_vocabulary)).copy())
        finally:
            self._library.llama_batch_free(batch)

    def _run(self, batch: _Batch, n_tokens: int, wanted: bool) -> None:
        """Decode the ``n_tokens`` of ``batch``; ``wanted``: with logits after each."""
        batch.n_tokens = n_tokens
        for i in range(n_tokens):
            batch.n_seq_id[i], batch.logits[i] = 1, wanted
            batch.seq_id[i][0] = 0
        if status := self._library.llama_decode(self._context, batch):
            raise fail(
                "gguf/decode",
                "llama.cpp",
                saw=f"status {status}: {_last_message()}",
                wanted="it runs the file",
                help="pip install --upgrade xllamacpp",
            )

    def greedy(self, prompts: Tensor, count: int) -> Tensor:
        return torch.stack([torch.tensor(self._continued([prompt], count)) for prompt in prompts])

    def answer(
        self, prompt: Sample, count: int, tell: Callable[[int], None] | None = None, temperature: float = 0.0
    ) -> list[int]:
        return self._continued(self._segments(prompt), count, True, tell, temperature)

    def for_harness(self, tokenizer: Any, longest: int, batch: int) -> Any:
        from bitwright.runtimes.harness import GgufLM  # a large library, for tasks alone

        return GgufLM(self, longest)

    def _continued(
        self,
        parts: Sequence[Tensor | Seen],
        count: int,
        until_end: bool = False,
        tell: Callable[[int], None] | None = None,
        temperature: float = 0.0,
    ) -> list[int]:
        """The ``count`` ids that follow ``parts`` when the likeliest is taken each time; fewer where a text's end stops it."""
        for logits in self.logit_parts(*parts):
            following = _drawn(logits[-1], temperature)
        found: list[int] = []
        at = sum(part.n_positions if isinstance(part, Seen) else len(part) for part in parts)
        while len(found) < count and not (until_end and self._library.llama_vocab_is_eog(self._vocabulary, following)):
            found.append(following)
            if tell:
                tell(following)
            if len(found) < count:
                following = _drawn(self._decode(torch.tensor(found[-1:]), at)[-1], temperature)
            at += 1
        return found

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Ids of ``text`` with the file's own tokenizer, with beginning-of-sequence where the file asks for it."""
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 16))()
        count = self._library.llama_tokenize(self._vocabulary, raw, len(raw), room, len(room), True, special)
        return list(room[:count])


def _drawn(logits: Tensor, temperature: float) -> int:
    """The likeliest id, or one drawn at ``temperature``."""
    return int((logits / temperature).softmax(-1).multinomial(1) if temperature else logits.argmax())


_MESSAGES: list[str] = []


def _note(level: int, text: bytes, _: object) -> None:
    if level >= 3:  # warnings and errors
        if message := text.decode(errors="replace").strip(" .\n"):
            _MESSAGES.append(message)
        del _MESSAGES[:-20]


_NOTE = _LOG(_note)  # kept alive for the library


def _last_message() -> str:
    return next((m for m in _MESSAGES[-3:] if "error" in m), (_MESSAGES or ["no message"])[-1])


@cache
def library() -> ctypes.CDLL:
    """The shared library with its functions declared; raises BitwrightError where the wheel is missing."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise not_installed("gguf/runtime", "llama.cpp", "xllamacpp", "it runs the file")
    files = [p for p in Path(found.origin).parent.iterdir() if p.name.startswith("xllamacpp.") and p.suffix in (".so", ".pyd")]
    loaded = ctypes.CDLL(str(files[0]))
    for name, result, arguments in _signatures():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    loaded.llama_log_set(_NOTE, None)
    loaded.llama_backend_init()
    return loaded


def _signatures() -> Iterator[tuple[str, object, list[object]]]:
    pointer, integer, count = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    yield "llama_log_set", None, [_LOG, pointer]
    yield "llama_backend_init", None, []
    yield "llama_model_default_params", _ModelParameters, []
    yield "llama_context_default_params", _ContextParameters, []
    yield "llama_model_load_from_file", pointer, [ctypes.c_char_p, _ModelParameters]
    yield "llama_init_from_model", pointer, [pointer, _ContextParameters]
    yield "llama_model_get_vocab", pointer, [pointer]
    yield "llama_vocab_n_tokens", integer, [pointer]
    yield "llama_vocab_is_eog", ctypes.c_bool, [pointer, integer]
    yield "llama_model_n_embd_inp", integer, [pointer]
    yield "llama_set_causal_attn", None, [pointer, ctypes.c_bool]
    yield "llama_set_n_threads", None, [pointer, integer, integer]
    yield "llama_adapter_lora_init", pointer, [pointer, ctypes.c_char_p]
    yield "llama_set_adapters_lora", integer, [pointer, pointer, ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)]
    yield "llama_free", None, [pointer]
    yield "llama_model_free", None, [pointer]
    yield "llama_get_memory", pointer, [pointer]
    yield "llama_memory_clear", None, [pointer, ctypes.c_bool]
    yield "llama_batch_init", _Batch, [integer, integer, integer]
    yield "llama_batch_free", None, [_Batch]
    yield "llama_decode", integer, [pointer, _Batch]
    yield "llama_get_logits", ctypes.POINTER(ctypes.c_float), [pointer]
    yield (
        "llama_tokenize",
        integer,
        [pointer, ctypes.c_char_p, integer, ctypes.POINTER(integer), integer, ctypes.c_bool, ctypes.c_bool],
    )
    yield "ggml_quantize_init", None, [ctypes.c_int]
    yield "ggml_quantize_chunk", ctypes.c_size_t, [ctypes.c_int, pointer, pointer, count, count, count, pointer]
