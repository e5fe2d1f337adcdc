"""A model's body one block at a time, as the sweep runs it, with everything in memory."""

import torch
from torch import Tensor

from bitwright.data.samples import Batch
from bitwright.measure.trace import Trace
from bitwright.models.spec import BlockId


def boundaries(trace: Trace, batch: Batch) -> dict[BlockId, Tensor]:
    """What every block is given, and under the number behind the last what that returns; all stacks in turn."""
    skeleton, given, returned = trace.skeleton, {}, {}
    skeleton.fill_rest(trace.device, trace.dtype)
    for stack in skeleton.spec.stacks:
        blocks = [BlockId(stack.name, i) for i in range(stack.n_blocks)]
        first = trace.record(stack.name, batch, returned.__getitem__, only_first=True)
        if first is None:
            continue
        called = next(block for block in blocks if trace.call(block, batch))
        with skeleton.filled(called, trace.device, trace.dtype) as module:
            trace.learn(called, module, batch, first)
        trace.record(stack.name, batch, returned.__getitem__)
        hidden = first
        for block in blocks:
            call = trace.call(block, batch)
            hidden = trace.input_of(block, batch, returned.__getitem__) if trace.is_fresh(block, batch) else hidden
            given[block] = hidden
            if call is not None:
                with skeleton.filled(block, trace.device, trace.dtype) as module, torch.no_grad():
                    hidden = call(module, hidden)
            returned[block] = given[BlockId(stack.name, block.index + 1)] = hidden
    return given
