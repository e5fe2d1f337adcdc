"""What is compiled, how often, and where no place is left to keep it."""

import errno
from types import ModuleType

import pytest
import torch
from numba.core import caching
from numba.core.dispatcher import Dispatcher

from bitwright.rounding.bnb4 import BNB4
from bitwright.rounding.ggml import GGML
from bitwright.rounding.group import GROUP
from bitwright.rounding.kernels import strips, trials
from bitwright.rounding.kernels.compiled import _kept_or_not, compiled
from bitwright.rounding.kernels.error_feedback import Feedback

KERNELS = (strips._feed_back, strips._sweep, trials._best)


def inner(size: int) -> torch.Tensor:
    x = torch.randn(200, size)
    return x.t() @ x / 200 + 0.1 * torch.eye(size)


def test_where_no_folder_can_be_written_it_is_compiled_for_this_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x + x

    assert compiled(doubled)(21) == 42


def test_a_full_disk_keeps_nothing_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)

    @compiled
    def doubled(x: int) -> int:
        return x + x

    @compiled
    def quadrupled(x: int) -> int:
        return doubled(doubled(x))

    with pytest.raises(OSError, match="No space"):
        compiled(lambda x: x)(1)
    assert _kept_or_not(lambda: quadrupled(3)) == 12


def test_whatever_lies_in_memory_is_compiled_once() -> None:
    """Each further layout would be compiled on its own, in the middle of a run and where an interrupt is lost."""
    feedback = Feedback.of(inner(256))
    for rounder, names in ((BNB4, ("nf4-b32-dq", "nf4-b64")), (GROUP, ("w3-g32", "w4-g64")), (GGML, ("q4_k", "q3_k", "mxfp4"))):
        rounder.calibrated(torch.randn(20, 256), feedback, [rounder.formats[name] for name in names])
    assert [len(kernel.signatures) for kernel in KERNELS] == [1, 1, 1]


@pytest.mark.parametrize("module", [strips, trials])
def test_a_change_of_what_is_called_is_seen_by_what_was_kept(module: ModuleType) -> None:
    """Machine code is kept under the file of the function alone: what it calls from another file would stay as it was."""
    kernels = [value for value in vars(module).values() if isinstance(value, Dispatcher)]
    assert kernels
    assert {kernel.py_func.__code__.co_filename for kernel in kernels} == {module.__file__}
