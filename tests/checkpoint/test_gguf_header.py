"""The header of a GGUF file: the library's own view of a sound one, a clear error for everything else, and no surprises."""

import random
import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from bitwright.checkpoint.gguf_header import read_gguf_header
from bitwright.errors import BitwrightError

FUZZ_SECONDS = 6.0
MEMORY_FACTOR, MEMORY_BASE = 24, 1 << 20


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with every kind of value and several types of tensors, written by the gguf package."""
    path = tmp_path_factory.mktemp("gguf") / "sound.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_token_list(["<s>", "</s>", "héllo", "世界"] + [f"t{i}" for i in range(60)])
    writer.add_token_scores([float(-i) for i in range(64)])
    writer.add_token_types([3, 3, *[1] * 62])
    rng = np.random.default_rng(0)
    values = rng.standard_normal((8, 256)).astype(np.float32)
    writer.add_tensor("output_norm.weight", values[0])
    writer.add_tensor("token_embd.weight", values.astype(np.float16))
    for kind in ("Q4_0", "Q8_0", "TQ2_0"):
        quantized = gguf.quantize(values, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(f"blk.0.{kind}.weight", quantized, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_sound_file_reads_as_in_the_library(sound: Path) -> None:
    header, reader = read_gguf_header(sound), gguf.GGUFReader(sound)
    assert header.version == 3
    assert list(header.tensors) == [t.name for t in reader.tensors]
    for theirs in reader.tensors:
        ours = header.tensors[theirs.name]
        assert (ours.type, ours.start, ours.nbytes) == (theirs.tensor_type.name.lower(), theirs.data_offset, theirs.n_bytes)
        assert ours.shape == tuple(int(n) for n in reversed(theirs.shape))
    for key, value in header.metadata.items():
        theirs = reader.fields[key].contents()
        assert (list(value) if hasattr(value, "__len__") and not isinstance(value, str) else value) == theirs, key


def rewritten(sound: Path, path: Path, old: bytes, new: bytes) -> Path:
    data = sound.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    return path


def name(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


HOSTILE = {
    "magic": (b"GGUF\x03\x00\x00\x00", b"GGML\x03\x00\x00\x00", "begins with"),
    "version 1": (b"GGUF\x03\x00\x00\x00", b"GGUF\x01\x00\x00\x00", "version 2 or 3"),
    "big-endian": (b"GGUF\x03\x00\x00\x00", b"GGUF\x00\x00\x00\x03", "little-endian"),
    "path in a name": (name("output_norm.weight"), name("../put_norm.weight"), "path separators"),
    "name twice": (name("blk.0.Q4_0.weight"), name("blk.0.Q8_0.weight"), "twice"),
    "not UTF-8": ("héllo".encode(), b"h\xff\xfello", "UTF-8"),
    "unknown value type": (name("llama.block_count") + b"\x04", name("llama.block_count") + b"\x63", "value type 99"),
    "endless string": (name("</s>"), struct.pack("<Q", 2**62) + b"</s>", "truncated"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_with_the_place(sound: Path, tmp_path: Path, case: str) -> None:
    old, new, words = HOSTILE[case]
    with pytest.raises(BitwrightError, match=words) as caught:
        read_gguf_header(rewritten(sound, tmp_path / "hostile.gguf", old, new))
    assert "hostile.gguf" in str(caught.value)


def described(sound: Path, tensor: str) -> int:
    """Where the description of ``tensor`` goes on behind its name."""
    return sound.read_bytes().index(name(tensor)) + 8 + len(tensor)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, struct.pack("<I", 9), "9 dimensions"),
        (4, struct.pack("<Q", 255), "whole blocks of 32"),
        (4, struct.pack("<Q", 0), "whole blocks"),
        (12, struct.pack("<Q", 2**60), "within the file"),
        (20, struct.pack("<I", 77), "type 77"),
        (24, struct.pack("<Q", 2**40), "within the file"),
        (24, struct.pack("<Q", 7), "multiple of 32"),
        (24, struct.pack("<Q", 0), "overlap"),
    ],
)
def test_wrong_descriptions_are_refused(sound: Path, tmp_path: Path, at: int, value: bytes, words: str) -> None:
    data = bytearray(sound.read_bytes())
    start = described(sound, "blk.0.Q4_0.weight") + at
    data[start : start + len(value)] = value
    path = tmp_path / "wrong.gguf"
    path.write_bytes(data)
    with pytest.raises(BitwrightError, match=words):
        read_gguf_header(path)


@pytest.mark.parametrize("offset", [8, 16])
def test_counts_beyond_the_file_are_refused_at_once(sound: Path, tmp_path: Path, offset: int) -> None:
    data = bytearray(sound.read_bytes())
    data[offset : offset + 8] = struct.pack("<Q", 2**50)
    path = tmp_path / "counts.gguf"
    path.write_bytes(data)
    with pytest.raises(BitwrightError, match="truncated"):
        read_gguf_header(path)


def test_every_truncation_is_refused(sound: Path, tmp_path: Path) -> None:
    data, path = sound.read_bytes(), tmp_path / "short.gguf"
    last = max(t.start + t.nbytes for t in read_gguf_header(sound).tensors.values())
    for length in [*range(0, 200), *range(200, last, 97), last - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(BitwrightError):
            read_gguf_header(path)


def test_mutations_end_in_a_header_or_a_clear_error(sound: Path, tmp_path: Path) -> None:
    """For some seconds: no other exception, no hang, no memory beyond a small multiple of the file."""
    whole, path = sound.read_bytes(), tmp_path / "mutant.gguf"
    header_end = min(t.start for t in read_gguf_header(sound).tensors.values())
    rng = random.Random(0)
    deadline, refused, rounds, slowest, most = time.monotonic() + FUZZ_SECONDS, 0, 0, 0.0, 0
    tracemalloc.start()
    try:
        while time.monotonic() < deadline:
            path.write_bytes(mutated(bytearray(whole), header_end, rng))
            tracemalloc.reset_peak()
            before, started = tracemalloc.get_traced_memory()[0], time.monotonic()
            try:
                read_gguf_header(path)
            except BitwrightError:
                refused += 1
            slowest = max(slowest, time.monotonic() - started)
            most = max(most, tracemalloc.get_traced_memory()[1] - before)
            rounds += 1
    finally:
        tracemalloc.stop()
    assert rounds > 200
    assert refused > rounds // 3
    assert slowest < 2.0
    assert most < MEMORY_FACTOR * len(whole) + MEMORY_BASE


def mutated(data: bytearray, header_end: int, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(header_end)
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, len(data))))
            case 2:
                del data[at : at + rng.randrange(1, 40)]
            case 3:
                data[at:at] = rng.randbytes(rng.randrange(1, 40))
            case _:
                other = rng.randrange(header_end)
                data[at : at + 16] = data[other : other + 16]
    return bytes(data)
