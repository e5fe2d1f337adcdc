"""Layers that keep a state of fixed size in place of all tokens: their tensors and their states (no torch).

Configurations name the same numbers differently; each reader below gives them one name.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from bitwright.estimate.parts import OTHER, Part, Parts, linear
from bitwright.models.settings import Config

KERNEL = 2  # bytes a number of the convolution's last inputs
STATE = 4  # bytes a number of the state, which runtimes hold in 32 bit


@dataclass(frozen=True)
class Mamba:
    """Sizes of a selective state space (Mamba, arXiv 2312.00752; Mamba-2, arXiv 2405.21060)."""

    inner: int
    state: int
    kernel: int
    groups: int = 1
    heads: int = 0
    head_dim: int = 0
    rank: int = 0  # of the time step, in the first generation
    bias: bool = False
    kernel_bias: bool = True

    @property
    def convolved(self) -> int:
        return self.inner + 2 * self.groups * self.state


def _first(text: Config) -> Mamba:
    hidden = int(text["hidden_size"])
    prefix = "mamba_" if "mamba_d_state" in text else ""
    rank = text.get(f"{prefix}dt_rank" if prefix else "time_step_rank", "auto")
    return Mamba(
        inner=int(text["mamba_expand"] * hidden) if prefix else int(text.get("intermediate_size") or text["expand"] * hidden),
        state=int(text["mamba_d_state" if prefix else "state_size"]),
        kernel=int(text["mamba_d_conv" if prefix else "conv_kernel"]),
        rank=ceil(hidden / 16) if rank == "auto" else int(rank),
        bias=bool(text.get("mamba_proj_bias" if prefix else "use_bias")),
        kernel_bias=bool(text.get("mamba_conv_bias" if prefix else "use_conv_bias", True)),
    )


def _second(text: Config) -> Mamba:
    hidden = int(text["hidden_size"])
    if "mamba_d_state" in text:
        inner = int(text.get("mamba_d_ssm") or text["mamba_expand"] * hidden)
        heads = int(text["mamba_n_heads"])
        return Mamba(
            inner,
            int(text["mamba_d_state"]),
            int(text["mamba_d_conv"]),
            int(text["mamba_n_groups"]),
            heads,
            inner // heads,
            bias=bool(text.get("mamba_proj_bias")),
            kernel_bias=bool(text.get("mamba_conv_bias", True)),
        )
    heads = int(text.get("mamba_num_heads") or text["num_heads"])
    width = int(text.get("mamba_head_dim") or text["head_dim"])
    return Mamba(
        heads * width,
        int(text.get("ssm_state_size") or text["state_size"]),
        int(text["conv_kernel"]),
        int(text["n_groups"]),
        heads,
        width,
        bias=bool(text.get("use_bias")),
        kernel_bias=bool(text.get("use_conv_bias", True)),
    )


def mamba(text: Config, layer: int, norms: bool = False) -> Parts:
    """The first generation. ``norms``: over the time step and both projections, as Jamba has them."""
    size, hidden = _first(text), int(text["hidden_size"])
    yield from linear(2 * size.inner, hidden, bias=size.bias)
    yield from linear(size.rank + 2 * size.state, size.inner)
    yield from linear(size.inner, size.rank, bias=True)
    yield from linear(hidden, size.inner, bias=size.bias)
    yield Part(OTHER, (size.inner, size.kernel + size.kernel_bias))
    yield Part(OTHER, (size.inner, size.state + 1))  # A and D
    if norms:
        yield Part(OTHER, (size.rank + 2 * size.state,))


def mamba_state(text: Config) -> int:
    """Bytes of one layer's state for one text."""
    size = _first(text)
    return size.inner * (KERNEL * size.kernel + STATE * size.state)


def mamba2(text: Config, layer: int, norm: bool = True) -> Parts:
    size, hidden = _second(text), int(text["hidden_size"])
    yield from linear(size.inner + size.convolved + size.heads, hidden, bias=size.bias)
    yield from linear(hidden, size.inner, bias=text.get("projectors_bias", size.bias))
    yield Part(OTHER, (size.convolved, size.kernel + size.kernel_bias))
    yield Part(OTHER, (size.heads,), 3)  # A, D and the bias of the time step
    if norm:
        yield Part(OTHER, (size.inner,))


def mamba2_state(text: Config) -> int:
    size = _second(text)
    return KERNEL * size.convolved * size.kernel + STATE * size.heads * size.head_dim * size.state


def delta_net(text: Config, layer: int) -> Parts:
    """Gated DeltaNet (arXiv 2412.06464), as in Qwen3-Next and Qwen3.5."""
    hidden, keys, values, heads = _delta(text)
    yield from linear(2 * keys + 2 * values, hidden)
    yield from linear(2 * heads, hidden)
    yield from linear(hidden, values)
    yield Part(OTHER, (2 * keys + values, text["linear_conv_kernel_dim"]))
    yield Part(OTHER, (heads,), 2)
    yield Part(OTHER, (text["linear_value_head_dim"],))


def delta_net_state(text: Config) -> int:
    _, keys, values, heads = _delta(text)
    convolved = (2 * keys + values) * int(text["linear_conv_kernel_dim"])
    return KERNEL * convolved + STATE * heads * int(text["linear_key_head_dim"]) * int(text["linear_value_head_dim"])


def _delta(text: Config) -> tuple[int, int, int, int]:
    """Width of the model, of all keys, of all values, and the heads of values."""
    heads = int(text["linear_num_value_heads"])
    keys = int(text["linear_num_key_heads"] * text["linear_key_head_dim"])
    return int(text["hidden_size"]), keys, heads * int(text["linear_value_head_dim"]), heads


def short_convolution(text: Config, layer: int) -> Parts:
    """The gated convolution over a few tokens of LFM2."""
    hidden, bias = int(text["hidden_size"]), text.get("conv_bias")
    yield from linear(3 * hidden, hidden, bias=bias)
    yield from linear(hidden, hidden, bias=bias)
    yield Part(OTHER, (hidden, text["conv_L_cache"] + bool(bias)))


def short_convolution_state(text: Config) -> int:
    return KERNEL * int(text["hidden_size"]) * int(text["conv_L_cache"])
