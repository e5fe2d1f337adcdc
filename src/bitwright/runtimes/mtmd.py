"""llama.cpp's multimodal library through its C interface: what a vision tower in a GGUF file makes of an image.

Source: tools/mtmd/mtmd.h of llama.cpp. Structures that are handed over by value are declared as in llama_cpp.py.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwright.checkpoint.gguf_header import GgufTensor, read_gguf_header
from bitwright.data.samples import Sample
from bitwright.errors import BitwrightError, fail

IMAGE = 1  # the kind of a chunk
STRUCTURE_BYTES = 1024  # more than the parameter structure has
PIXELS, GRID, SIZES = "pixel_values", "image_grid_thw", "image_sizes"
ROW_END = "v.token_embd.img_break"  # of towers whose tokens say where a row of the image ends
WIDE = {"f32": np.float32, "f16": np.float16}
FRAMES = 2  # of an image that is given as patches


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


@dataclass(frozen=True)
class Seen:
    """What a tower makes of an image: float32 [tokens, width], and the places that they are told of, one or a grid's."""

    rows: Tensor
    grid: tuple[int, int] | None = None  # wide, high; where every token has a place in the picture
    row: int = 0  # tokens of the picture between two that say that a row ends; 0: nothing says so

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_positions(self) -> int:
        """How far the text behind it is moved on."""
        return max(self.grid) if self.grid else len(self)

    def fits(self, ids: list[int]) -> bool:
        """Whether ``ids`` are the place of this image: one id throughout, but for another one behind each row."""
        of_picture = [at for i, at in enumerate(ids) if not self._ends(i)]
        between = [at for i, at in enumerate(ids) if self._ends(i)]
        alike = len(set(of_picture)) == 1 and len(set(between)) == (1 if between else 0)
        return len(ids) == len(self) and alike and not set(of_picture) & set(between)

    def _ends(self, i: int) -> bool:
        return bool(self.row) and i % (self.row + 1) == self.row

    def positions(self, start: int) -> Tensor:
        """int32 [tokens], or of a grid [4, tokens]: time, row, column, and one that nothing reads."""
        if self.grid is None:
            return torch.arange(start, start + len(self), dtype=torch.int32)
        wide, high = self.grid
        rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
        time = torch.zeros(high * wide, dtype=torch.long)
        places = torch.stack([time, rows.flatten(), columns.flatten()]) + start
        return torch.cat([places, time[None]]).int()


class VisionTower:
    """The tower and projector in the file ``path``, beside the text model that ``model`` points to.

    ``both_ways``: whether the tokens of an image attend to each other in both directions.
    """

    def __init__(self, library: ctypes.CDLL, path: Path, model: int, width: int) -> None:
        """``width``: features of the text's embeddings. Raises BitwrightError where the file is not loaded."""
        self._library, self.path, self.width = _declared(library), path, width
        self._context = None
        header = read_gguf_header(path)
        metadata: dict[str, Any] = dict(header.metadata)
        self._row_end = _vector(path, header.tensors[ROW_END]) if ROW_END in header.tensors else None
        self._mean, self._deviation = (
            np.array(metadata[f"clip.vision.{name}"], dtype=np.float32)[:, None, None] for name in ("image_mean", "image_std")
        )
        self._patch = int(metadata["clip.vision.patch_size"])
        self._merged = int(metadata.get("clip.vision.spatial_merge_size", 2))
        self._context = library.mtmd_init_from_file(str(path).encode(), model, library.mtmd_context_params_default())
        if not self._context:
            raise fail(
                "gguf/load",
                path,
                saw="its vision tower is not loaded",
                wanted="llama.cpp loads the file",
                help="pip install --upgrade xllamacpp",
            )
        self._gridded = bool(self._library.mtmd_decode_use_mrope(self._context))
        self.both_ways = bool(self._library.mtmd_decode_use_non_causal(self._context, None))

    def close(self) -> None:
        """Release the tower; it must not be used afterwards."""
        if self._context:
            self._library.mtmd_free(self._context)
        self._context = None

    def embeddings(self, sample: Sample) -> list[Seen]:
        """What the tower makes of each image of ``sample``.

        The processor's pixels are turned back into those of an image of the size that the tower takes, which llama.cpp does
        not resize: both runtimes see the same picture. Raises BitwrightError for pixels that are no picture.
        """
        return [self._embedded(np.rint(255 * image).clip(0, 255).astype(np.uint8)) for image in self._images(sample)]

    def _images(self, sample: Sample) -> list[np.ndarray]:
        """Every image of ``sample`` [3, high, wide] between 0 and 1."""
        pixels, grids = sample.media.get(PIXELS), sample.media.get(GRID)
        if pixels is not None and grids is not None:
            cut = pixels.float().split([int(grid.prod()) for grid in grids])
            whole = [self._whole(patches, *grid.tolist()) for patches, grid in zip(cut, grids, strict=True)]
        elif pixels is not None and (sizes := sample.media.get(SIZES)) is not None:
            whole = [image[:, : int(h), : int(w)].float() for image, (h, w) in zip(pixels, sizes, strict=True)]
        elif pixels is not None and pixels.dim() >= 4 and pixels.shape[-3] == 3:
            whole = list(pixels.reshape(-1, *pixels.shape[-3:]).float())
        else:
            raise unseen(f"{PIXELS} of shape {tuple(pixels.shape) if pixels is not None else ()}")
        return [image.numpy() * self._deviation + self._mean for image in whole]

    def _whole(self, patches: Tensor, times: int, high: int, wide: int) -> Tensor:
        """``patches`` [times * high * wide, 3 * FRAMES * patch * patch], those that are merged together, as an image."""
        if times != 1:
            raise unseen(f"{times * FRAMES} frames")
        merged, side = self._merged, self._patch
        shape = (high // merged, wide // merged, merged, merged, 3, FRAMES, side, side)
        image = patches.reshape(shape).permute(5, 4, 0, 2, 6, 1, 3, 7).reshape(FRAMES, 3, high * side, wide * side)
        return image[0]

    def _embedded(self, image: np.ndarray) -> Seen:
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
            rows = torch.from_numpy(np.ctypeslib.as_array(library.mtmd_get_output_embd(self._context), shape).copy())
            if not self._gridded:
                return self._in_rows(rows, image.shape[2] // self._patch // self._merged)
            tokens = library.mtmd_input_chunk_get_tokens_image(whole)
            return Seen(rows, (library.mtmd_image_tokens_get_nx(tokens), library.mtmd_image_tokens_get_ny(tokens)))
        finally:
            library.mtmd_input_chunks_free(chunks)
            library.mtmd_bitmap_free(bitmap)

    def _in_rows(self, rows: Tensor, wide: int) -> Seen:
        """``rows`` [tokens, width] of an image that is ``wide`` tokens wide.

        What stands behind each row of an image is known: llama.cpp adds it to zero times memory that nothing was written to
        (build of the graph in tools/mtmd/models/pixtral.cpp), which is NaN where NaN lay there before.
        """
        if self._row_end is None:
            return Seen(rows)
        rows[wide :: wide + 1] = self._row_end
        return Seen(rows, row=wide)


def _vector(path: Path, tensor: GgufTensor) -> Tensor:
    """float32 [width]: what the file ``path`` holds as ``tensor``."""
    if tensor.type not in WIDE:
        raise fail(
            "gguf/load",
            path,
            saw=f"{tensor.name} in {tensor.type}",
            wanted=" or ".join(WIDE),
            help="convert the model with llama.cpp or bitwright again",
        )
    return torch.from_numpy(np.fromfile(path, WIDE[tensor.type], tensor.shape[-1], offset=tensor.start)).float()


def segments(sample: Sample, embeddings: list[Seen]) -> list[Tensor | Seen]:
    """``sample`` as what is decoded one after the other: ids int64 [t], and in the images' places what the tower made of them.

    The place of an image is the first run of one id that is as long as its embeddings, with another id between its rows where
    the tower says where they end. Raises BitwrightError where there is none, or where such ids are left over: the two runtimes
    do not agree on the number of an image's tokens.
    """
    ids, found, start = sample.ids.tolist(), list[Tensor | Seen](), 0
    text, pictured = list[int](), set[int]()
    for image in embeddings:
        n = len(image)
        places = (i for i in range(start, len(ids) - n + 1) if ids[i] == ids[i + n - 1] and image.fits(ids[i : i + n]))
        at = next(places, None)
        if at is None:
            raise unseen(f"no place for the {n} tokens of an image")
        found += [sample.ids[start:at], image]
        text += ids[start:at]
        pictured.add(ids[at])
        start = at + n
    if left := sum(one in pictured for one in text + ids[start:]):
        raise unseen(f"{left} more places of images than llama.cpp makes tokens")
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
        ("mtmd_decode_use_mrope", ctypes.c_bool, [pointer]),
        ("mtmd_decode_use_non_causal", ctypes.c_bool, [pointer, pointer]),  # of an image where no chunk is named
        ("mtmd_input_chunk_get_tokens_image", pointer, [pointer]),
        ("mtmd_image_tokens_get_nx", size, [pointer]),
        ("mtmd_image_tokens_get_ny", size, [pointer]),
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
