"""Written files: read back by the library, whole or absent."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bitwright.checkpoint import writer
from bitwright.checkpoint.headers import INDEX_NAME, read_headers
from bitwright.checkpoint.tensors import read_tensor
from bitwright.checkpoint.workdir import WorkDir, content_hash
from bitwright.checkpoint.writer import SafetensorsWriter, TensorPlan
from bitwright.errors import BitwrightError

TENSORS = {f"t{i}": torch.randn(10, i + 1).to(dtype) for i, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16))}


def plans() -> list[TensorPlan]:
    return [TensorPlan.like(name, tensor) for name, tensor in TENSORS.items()]


def write(directory: Path) -> int:
    writer = SafetensorsWriter(directory, plans())
    for name, tensor in TENSORS.items():
        writer.put(name, tensor)
    writer.close()
    return writer.nbytes


def test_the_library_reads_one_file(tmp_path: Path) -> None:
    nbytes = write(tmp_path)
    assert nbytes == sum(t.numel() * t.element_size() for t in TENSORS.values())
    back = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in TENSORS.items())


def test_shards_have_an_index_and_the_same_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SHARD_BYTES", 50)
    write(tmp_path)
    assert (tmp_path / INDEX_NAME).exists()
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    refs = read_headers(tmp_path)
    assert all(torch.equal(read_tensor(refs[name]), tensor) for name, tensor in TENSORS.items())


def test_a_work_piece_is_whole_or_absent(tmp_path: Path) -> None:
    work = WorkDir(tmp_path, content_hash("a", 1))
    work.save_tensors("piece", TENSORS)
    assert set(work.load_tensors("piece", prefix="t1")) == {""}
    assert all(torch.equal(work.load_tensors("piece")[n], t) for n, t in TENSORS.items())
    with pytest.raises(AttributeError):
        work.save_tensors("broken", {"a": torch.ones(1), "b": None})  # type: ignore[dict-item]
    assert not work.has("broken")
    assert WorkDir(tmp_path, content_hash("a", 2)).directory != work.directory


def test_a_full_disk_in_the_work_directory_leaves_no_half_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = WorkDir(tmp_path, content_hash("a", 1))
    work.save_tensors("piece", TENSORS)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer.ShardWriter, "put", full)
        with pytest.raises(BitwrightError, match="No space left"):
            work.save_tensors("other", TENSORS)
    assert {path.name for path in work.directory.iterdir()} == {"piece"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(BitwrightError, match="output/write"):
        WorkDir(tmp_path / "file", "key")
