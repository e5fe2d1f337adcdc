"""Many small steps as one: what a GPU does thousands of times alike is recorded once and played back (CUDA graphs).

A column that is rounded is a dozen operations on one number a row. A GPU does each of them in two microseconds, and waits
for Python for three times as long.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEPT = 64  # recordings: a few shapes of weights, a few grids


@dataclass(frozen=True)
class _Recording:
    graph: Any  # torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


_recordings: OrderedDict[tuple[object, ...], _Recording] = OrderedDict()


def replay(function: Callable[..., Tensor], setting: object, changed: int, *tensors: Tensor) -> Tensor:
    """``function(setting, *tensors)``: it overwrites the first ``changed`` of its tensors and decides nothing by values.

    On a processor it is just called. ``setting`` is what a recording depends on beside shapes.

    >>> replay(lambda power, x: x.pow_(power) + 1, 2, 1, x := torch.tensor([3.0])), x
    (tensor([10.]), tensor([9.]))
    """
    if tensors[0].device.type != "cuda":
        return function(setting, *tensors)
    key = (function, setting, *((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors))
    if key not in _recordings:
        _recordings[key] = _record(function, setting, tensors)
        if len(_recordings) > KEPT:
            _recordings.popitem(last=False)
    _recordings.move_to_end(key)
    recording = _recordings[key]
    for own, given in zip(recording.inputs, tensors, strict=True):
        own.copy_(given)
    recording.graph.replay()
    for own, given in zip(recording.inputs[:changed], tensors, strict=False):
        given.copy_(own)
    return recording.output.clone()


def _record(function: Callable[..., Tensor], setting: object, tensors: tuple[Tensor, ...]) -> _Recording:
    """Run once beside the current stream, as CUDA asks for, then record."""
    inputs = tuple(tensor.clone() for tensor in tensors)
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        function(setting, *inputs)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(setting, *inputs)
    return _Recording(graph, inputs, output)
