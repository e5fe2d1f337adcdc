"""llama.cpp's multimodal library through its C interface: what a vision tower in a GGUF file makes of an image.

Source: tools/mtmd/mtmd.h of llama.cpp. Structures that are handed over by value are declared as in llama_cpp.py.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwright.checkpoint.gguf_header import read_gguf_header
from bitwright.data.samples import Sample
from bitwright.errors import BitwrightError, fail

IMAGE = 1  # the kind of a chunk
STRUCTURE_BYTES = 1024  # more than the parameter structure has
PIXELS = "pixel_values"


class _Parameters(ctypes.Structure):
    _fields_ = [("opaque", ctypes.c_byte * STRUCTURE_BYTES)]


class _Text(ctypes.Structure):
    _fields_ = [
        ("text", ctypes.c_char_p),
        ("length", ctypes.c_size_t),  # since 2026: before, the two flags stood here, and what of it they read does no harm
        ("add_special", ctypes.c_bool),
        ("parse_special", ctypes.c_bool),
        ("opaque", ctypes.c_byte * STRUCTURE_BYTES),
    ]


class VisionTower:
    """The tower and projector in the file ``path``, beside the text model that ``model`` points to."""

    def __init__(self, library: ctypes.CDLL, path: Path, model: int, width: int) -> None:
        """``width``: features of the text's embeddings. Raises BitwrightError where the file is not loaded."""
        self._library, self.path, self.width = _declared(library), path, width
        self._context = library.mtmd_init_from_file(str(path).encode(), model, library.mtmd_context_params_default())
        if not self._context:
            raise fail(
                "gguf/load",
                path,
                saw="its vision tower is not loaded",
                wanted="llama.cpp loads the file",
                help="pip install --upgrade xllamacpp",
            )
        metadata: dict[str, Any] = dict(read_gguf_header(path).metadata)
        self._mean, self._deviation = (
            np.array(metadata[f"clip.vision.{name}"], dtype=np.float32)[:, None, None] for name in ("image_mean", "image_std")
        )

    def close(self) -> None:
        """Release the tower; it must not be used afterwards."""
        if self._context:
            self._library.mtmd_free(self._context)
        self._context = None

    def embeddings(self, sample: Sample) -> list[Tensor]:
        """What the tower makes of each image of ``sample``: float32 [image tokens, width].

        The processor's pixels are turned back into those of an image of the size that the tower takes, which llama.cpp does
        not resize: both runtimes see the same picture. Raises BitwrightError for pixels that are no picture.
        """
        pixels = sample.media.get(PIXELS)
        if pixels is None or pixels.dim() < 4 or pixels.shape[-3] != 3:
            raise unseen(f"{PIXELS} of shape {tuple(pixels.shape) if pixels is not None else ()}")
        images = pixels.reshape(-1, *pixels.shape[-3:]).float().numpy() * self._deviation + self._mean
        return [self._embedded(np.rint(255 * image).clip(0, 255).astype(np.uint8)) for image in images]

    def _embedded(self, image: np.ndarray) -> Tensor:
        library, raw = self._library, np.ascontiguousarray(image.transpose(1, 2, 0)).tobytes()
        bitmap = library.mtmd_bitmap_init(image.shape[2], image.shape[1], raw)
        chunks = library.mtmd_input_chunks_init()
        try:
            marker = library.mtmd_default_marker()
            text = _Text(marker, len(marker), False, True)
            bitmaps = (ctypes.c_void_p * 1)(bitmap)
            if status := library.mtmd_tokenize(self._context, chunks, ctypes.byref(text), bitmaps, 1):
                raise unseen(f"status {status} of mtmd_tokenize")
            every = [library.mtmd_input_chunks_get(chunks, i) for i in range(library.mtmd_input_chunks_size(chunks))]
            whole = [chunk for chunk in every if library.mtmd_input_chunk_get_type(chunk) == IMAGE][-1]  # after its tiles
            if status := library.mtmd_encode_chunk(self._context, whole):
                raise unseen(f"status {status} of mtmd_encode_chunk")
            shape = (library.mtmd_input_chunk_get_n_tokens(whole), self.width)
            return torch.from_numpy(np.ctypeslib.as_array(library.mtmd_get_output_embd(self._context), shape).copy())
        finally:
            library.mtmd_input_chunks_free(chunks)
            library.mtmd_bitmap_free(bitmap)


def segments(sample: Sample, embeddings: list[Tensor]) -> list[Tensor]:
    """``sample`` as what is decoded one after the other: ids int64 [t], and embeddings [t, width] in the images' places.

    The place of an image is the first run of one id that is as long as its embeddings. Raises BitwrightError where there is
    none: the two runtimes do not agree on the number of an image's tokens.
    """
    ids, found, start = sample.ids.tolist(), list[Tensor](), 0
    for image in embeddings:
        n = len(image)
        places = (i for i in range(start, len(ids) - n + 1) if ids[i : i + n].count(ids[i]) == n)
        at = next(places, None)
        if at is None:
            raise unseen(f"no place for the {n} tokens of an image")
        found += [sample.ids[start:at], image]
        start = at + n
    return [part for part in (*found, sample.ids[start:]) if len(part)]


def unseen(saw: str) -> BitwrightError:
    return fail(
        "gguf/images",
        "llama.cpp",
        saw=saw,
        wanted="one image of a fixed size for each place in the text, and a file with a vision tower",
        help="compare with --held-out TEXT",
    )


@cache
def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("mtmd_context_params_default", _Parameters, []),
        ("mtmd_init_from_file", pointer, [ctypes.c_char_p, pointer, _Parameters]),
        ("mtmd_free", None, [pointer]),
        ("mtmd_default_marker", ctypes.c_char_p, []),
        ("mtmd_bitmap_init", pointer, [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p]),
        ("mtmd_bitmap_free", None, [pointer]),
        ("mtmd_input_chunks_init", pointer, []),
        ("mtmd_input_chunks_free", None, [pointer]),
        ("mtmd_input_chunks_size", size, [pointer]),
        ("mtmd_input_chunks_get", pointer, [pointer, size]),
        ("mtmd_input_chunk_get_type", ctypes.c_int, [pointer]),
        ("mtmd_input_chunk_get_n_tokens", size, [pointer]),
        ("mtmd_tokenize", ctypes.c_int32, [pointer, pointer, ctypes.POINTER(_Text), pointer, size]),
        ("mtmd_encode_chunk", ctypes.c_int32, [pointer, pointer]),
        ("mtmd_get_output_embd", ctypes.POINTER(ctypes.c_float), [pointer]),
        ("mtmd_log_set", None, [pointer, pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.mtmd_log_set(ctypes.cast(_QUIET, pointer), None)
    return library


def _say_nothing(level: int, text: bytes, _: object) -> None:
    pass


_QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_say_nothing)  # kept alive for the library
