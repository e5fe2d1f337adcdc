"""Feed-forward layers, dense and of experts: their tensors (no torch)."""

from __future__ import annotations

from bitwright.estimate.parts import EXPERT, OTHER, Part, Parts, linear
from bitwright.models.settings import Config


def gated(text: Config, layer: int, inner: int | None = None, kind: str = "") -> Parts:
    """``kind``: what GGUF files add to the names."""
    hidden, width, bias = int(text["hidden_size"]), int(inner or text["intermediate_size"]), text.get("mlp_bias")
    for role in ("gate", "up"):
        yield from linear(width, hidden, bias=bias, name=f"blk.{layer}.ffn_{role}{kind}.weight")
    yield from linear(hidden, width, bias=bias, name=f"blk.{layer}.ffn_down{kind}.weight")


def fused(text: Config, layer: int) -> Parts:
    """Gate and up in one matrix."""
    hidden, width = int(text["hidden_size"]), int(text["intermediate_size"])
    yield from linear(2 * width, hidden, name=f"blk.{layer}.ffn_up.weight")
    yield from linear(hidden, width, name=f"blk.{layer}.ffn_down.weight")


def plain(text: Config, layer: int, inner: int | None = None, bias: object = None) -> Parts:
    """Two matrices and no gate."""
    hidden, width = int(text["hidden_size"]), int(inner or text["intermediate_size"])
    bias = text.get("mlp_bias") if bias is None else bias
    yield from linear(width, hidden, bias=bias, name=f"blk.{layer}.ffn_up.weight")
    yield from linear(hidden, width, bias=bias, name=f"blk.{layer}.ffn_down.weight")


def _experts(layer: int, hidden: int, inner: int, count: int, chosen: int, gate: bool = True) -> Parts:
    for role in ("gate", "up") if gate else ("up",):
        yield Part(EXPERT, (inner, hidden), count, chosen, f"blk.{layer}.ffn_{role}_exps.weight")
    yield Part(EXPERT, (hidden, inner), count, chosen, f"blk.{layer}.ffn_down_exps.weight")


def _router(text: Config, count: int) -> Parts:
    yield Part(OTHER, (count, text["hidden_size"]))


def _n_experts(text: Config) -> int:
    return int(text.get("num_experts") or text.get("num_local_experts") or text.get("n_routed_experts") or 0)


def _chosen(text: Config) -> int:
    return int(text.get("num_experts_per_tok") or _n_experts(text))


def mixtral(text: Config, layer: int) -> Parts:
    count = _n_experts(text)
    yield from _experts(layer, text["hidden_size"], text["intermediate_size"], count, _chosen(text))
    yield from _router(text, count)


def jamba(text: Config, layer: int) -> Parts:
    sparse = text["num_experts"] > 1 and layer % text["expert_layer_period"] == text["expert_layer_offset"]
    yield from (mixtral if sparse else gated)(text, layer)


def qwen_moe(text: Config, layer: int) -> Parts:
    step, count = text.get("decoder_sparse_step", 1), _n_experts(text)
    if layer in (text.get("mlp_only_layers") or ()) or not count or (layer + 1) % step:
        yield from gated(text, layer)
        return
    hidden = text["hidden_size"]
    yield from _experts(layer, hidden, text["moe_intermediate_size"], count, _chosen(text))
    yield from _router(text, count)
    if shared := text.get("shared_expert_intermediate_size"):
        yield from gated(text, layer, shared, "_shexp")
        yield from linear(1, hidden, name=f"blk.{layer}.ffn_gate_inp_shexp.weight")


def deepseek(text: Config, layer: int) -> Parts:
    if layer < text.get("first_k_dense_replace", 0):
        yield from gated(text, layer)
        return
    inner, count = text["moe_intermediate_size"], _n_experts(text)
    yield from _experts(layer, text["hidden_size"], inner, count, _chosen(text))
    yield from _router(text, count)
    if shared := text.get("n_shared_experts"):
        yield from gated(text, layer, shared * inner, "_shexp")


def gpt_oss(text: Config, layer: int) -> Parts:
    hidden, inner, count, chosen = text["hidden_size"], text["intermediate_size"], _n_experts(text), _chosen(text)
    yield from _experts(layer, hidden, inner, count, chosen)
    yield from _router(text, count)
    yield Part(OTHER, (count,))
    yield Part(OTHER, (2 * inner,), count, chosen)
    yield Part(OTHER, (hidden,), count, chosen)


def granite_hybrid(text: Config, layer: int) -> Parts:
    """Experts where there are any, and a shared layer with gate and up in one matrix."""
    hidden, shared, count = int(text["hidden_size"]), int(text["shared_intermediate_size"]), _n_experts(text)
    if count:
        yield from mixtral(text, layer)
    yield from linear(2 * shared, hidden)
    yield from linear(hidden, shared)


def nemotron_h(text: Config, layer: int) -> Parts:
    """Only in layers of their own: squared ReLU, experts around a narrower space where moe_latent_size says so."""
    kind = text["layer_types"][layer]
    if kind == "mlp":
        yield from plain(text, layer)
    if kind != "moe":
        return
    hidden, count = int(text["hidden_size"]), int(text["n_routed_experts"])
    latent = text.get("moe_latent_size")
    yield from _experts(layer, latent or hidden, text["moe_intermediate_size"], count, _chosen(text), gate=False)
    yield from _router(text, count)
    yield from plain(text, layer, text["moe_shared_expert_intermediate_size"])
    if latent:
        yield from linear(latent, hidden, bias=text.get("mlp_bias"))
        yield from linear(hidden, latent, bias=text.get("mlp_bias"))


def lfm2(text: Config, layer: int) -> Parts:
    """The width that LFM2 derives from the stated one: two thirds, times a factor, rounded up to a multiple."""
    inner = int(text["intermediate_size"])
    if text.get("block_auto_adjust_ff_dim", True):
        step = int(text["block_multiple_of"])
        inner = -(-int((text.get("block_ffn_dim_multiplier") or 1.0) * int(2 * inner / 3)) // step) * step
    yield from gated(text, layer, inner)
