"""What one weight costs alone: it is replaced, and what the model answers is compared. One block at a time is resident."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.checkpoint.workdir import WorkDir
from bitwright.data.samples import Sample, batches
from bitwright.evaluate.divergence import token_figures
from bitwright.evaluate.reference import condense
from bitwright.formats.base import Packed
from bitwright.host.progress import Reporter
from bitwright.host.schedule import ALONE
from bitwright.measure import store
from bitwright.measure.ceilings import SAMPLES, Alone, largest
from bitwright.measure.head import Head
from bitwright.measure.subject import Subject
from bitwright.measure.trace import Trace, first_of
from bitwright.models.skeleton import Skeleton
from bitwright.models.spec import BlockId, Weight
from bitwright.plan import Rounding
from bitwright.sensitivity import Sensitivity

PackedOf = Callable[[Weight, str, Rounding], Packed]


def look(
    table: Sensitivity, subject: Subject, samples: Sequence[Sample], packed_of: PackedOf, work: WorkDir, reporter: Reporter
) -> list[Alone]:
    """Measure the largest damages of ``table`` directly on ``samples``; what an earlier run has seen is taken from ``work``."""
    wanted = largest(table)
    known = {(one.weight, one.format, one.rounding): one for one in store.load_alone(work)}
    left = [(weight, row) for weight, row in wanted if (weight.name, row.format, row.rounding) not in known]
    if left:
        by_name = {weight.name: weight for weight in subject.source.spec.weights}
        samples = samples[:SAMPLES]
        references = [condense(logits, ids) for logits, ids in _logits(subject, subject.skeleton, samples)]
        for weight, row in reporter.track(left, ALONE, len(left)):
            of_model = by_name[weight.name]
            packed = packed_of(of_model, row.format, row.rounding)
            codes = subject.container.rounder(packed.format).codes
            value = of_model.view.matrix(codes.decode_packed(packed.format, packed.shape, packed.tensors, torch.float32))
            changed = replace(subject.skeleton, source=subject.source.swapped({weight.name: value}))
            pairs = zip(references, _logits(subject, changed, samples), strict=True)
            kl = torch.cat([token_figures(reference.to(logits.device), logits, ids).kl for reference, (logits, ids) in pairs])
            seen = Alone(weight.name, row.format, row.rounding, row.damage_nats, float(kl.double().mean()))
            known[weight.name, row.format, row.rounding] = seen
            store.save_alone(work, list(known.values()))
    return [known[weight.name, row.format, row.rounding] for weight, row in wanted]


@torch.no_grad()
def _logits(subject: Subject, skeleton: Skeleton, samples: Sequence[Sample]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [t, V] at the scored positions of all samples, in chunks, and the ids [t] that stand there; one block resident."""
    device, dtype = subject.device, subject.precision.work
    skeleton.fill_rest(device, dtype, head=False)
    try:
        trace = Trace(skeleton, device, dtype)
        hidden: dict[int, Tensor] = {}
        with streaming(skeleton, device, dtype) as returned:
            for batch in batches(samples, subject.method.batch_tokens):
                inputs = {name: t.to(device, dtype if t.is_floating_point() else None) for name, t in batch.inputs.items()}
                skeleton.model.base_model(**inputs, use_cache=False)
                for block, out in returned.items():
                    trace.saw(block, out)
                states = first_of(returned[skeleton.spec.blocks()[-1]])
                hidden |= {s: states[i : i + 1].cpu() for i, s in enumerate(batch.at)}
                returned.clear()
        skeleton.fill_head(device, dtype)
        for s, sample in enumerate(samples):
            for keep, logits in Head(trace).logits(sample, hidden[s].to(device)):
                counts = slice(None) if sample.scored is None else sample.scored[keep]
                yield logits[counts], sample.ids[keep][counts].to(device)
    finally:
        skeleton.release_rest()


@contextmanager
def streaming(skeleton: Skeleton, device: torch.device, dtype: torch.dtype) -> Iterator[dict[BlockId, Any]]:
    """Meanwhile the model fills a block when it calls it and empties it afterwards. Yields what the last block of each stack
    returned."""
    returned: dict[BlockId, Any] = {}
    with ExitStack() as hooks:
        for block in skeleton.spec.blocks():
            filled = ExitStack()

            def fill(module: nn.Module, args: Any, block: BlockId = block, filled: ExitStack = filled) -> None:
                filled.enter_context(skeleton.filled(block, device, dtype))

            def empty(module: nn.Module, args: Any, out: Any, block: BlockId = block, filled: ExitStack = filled) -> None:
                filled.close()
                if block.index == skeleton.stack(block.stack).n_blocks - 1:
                    returned[block] = out

            module = skeleton.module(block)
            hooks.callback(module.register_forward_pre_hook(fill).remove)
            hooks.callback(module.register_forward_hook(empty, always_call=True).remove)
        yield returned
