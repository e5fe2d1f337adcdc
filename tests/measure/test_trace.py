"""Streaming block by block gives the numbers of the whole model in memory."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from bitwright.checkpoint.checkpoint import Checkpoint
from bitwright.measure.curvature import fisher_scores
from bitwright.measure.stream import BlockStream, backward_through
from bitwright.models.skeleton import build_skeleton
from tests.conftest import ARCHITECTURES, Build

SEQUENCES, TOKENS = 3, 40


def resident(path: Path, ids: Tensor, generators: list[torch.Generator]) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Inputs, output gradients and logits of the whole model at once, by plain autograd."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and "lm_head" not in name:

            def note(_: object, args: tuple[Tensor, ...], out: Tensor, key: str = name + ".weight") -> None:
                inputs[key] = args[0].detach()
                out.register_hook(lambda g: gradients.__setitem__(key, g.detach()))

            module.register_forward_hook(note)
    embeddings = model.get_input_embeddings()(ids).requires_grad_(True)
    logits = model(inputs_embeds=embeddings, use_cache=False).logits
    loss = torch.zeros(())
    for row, generator in zip(logits, generators, strict=True):
        draw = torch.rand(len(row), 1, generator=generator)
        cumulative = row.detach().softmax(-1).cumsum(-1)
        y = torch.searchsorted(cumulative, draw * cumulative[:, -1:]).squeeze(1).clamp_(max=row.shape[1] - 1)
        loss = loss + torch.nn.functional.cross_entropy(row, y, reduction="sum")
    loss.backward()
    return inputs, gradients, logits.detach()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_streamed_equals_resident(build: Build, architecture: str) -> None:
    path = build(architecture)
    ids = torch.randint(3, 500, (SEQUENCES, TOKENS), generator=torch.Generator().manual_seed(7))
    skeleton = build_skeleton(Checkpoint.of_directory(path))
    stream = BlockStream(skeleton, torch.device("cpu"), torch.float32)
    stream.fill_rest()
    hidden = [stream.embed(ids)]
    with torch.no_grad():
        for index in range(stream.n_blocks):
            with stream.block(index) as block:
                hidden.append(stream.call(index, hidden[-1].shape)(block, hidden[-1]))
    expected_inputs, expected_gradients, expected_logits = resident(
        path, ids, [torch.Generator().manual_seed(s) for s in range(3)]
    )
    parts = [part for _, part in stream._head(ids[:1], hidden[-1][:1])]
    assert torch.allclose(torch.cat(parts).detach(), expected_logits[0], rtol=1e-4, atol=1e-4)
    gradient = torch.cat(
        [
            stream.sampled_score_gradient(ids[s : s + 1], hidden[-1][s : s + 1], torch.Generator().manual_seed(s))[0]
            for s in range(3)
        ]
    )
    stream.release_rest()
    for index in reversed(range(stream.n_blocks)):
        weights = [w for w in skeleton.spec.weights if w.block == index]
        with stream.block(index) as block:
            linears = {w.name: skeleton.model.get_submodule(w.module) for w in weights}
            call = stream.call(index, hidden[index].shape)
            gradient, inputs, gradients = backward_through(block, call, hidden[index], gradient, linears)
        for weight in weights:
            change = [torch.randn(weight.n_rows, weight.n_cols, generator=torch.Generator().manual_seed(1))]
            scores = fisher_scores(change, inputs[weight.name], gradients[weight.name])
            expected = fisher_scores(change, expected_inputs[weight.name], expected_gradients[weight.name])
            assert torch.allclose(scores, expected, rtol=1e-5, atol=1e-7 * float(expected.abs().max())), weight.name
    assert all(parameter.is_meta for parameter in skeleton.model.parameters()), "no weight stays resident"


def test_only_one_block_is_resident(build: Build) -> None:
    skeleton = build_skeleton(Checkpoint.of_directory(build("llama")))
    stream = BlockStream(skeleton, torch.device("cpu"), torch.float32)
    with stream.block(1) as block:
        assert not any(p.is_meta for p in block.parameters())
        assert all(p.is_meta for p in skeleton.blocks[0].parameters())
    assert all(p.is_meta for p in skeleton.blocks[1].parameters())
