"""What a change of one weight costs, in the second order of KL at the 16-bit model (pure functions).

KL(p || q) per sequence is about 1/2 E_y[(sum_t g_t . dW x_t)^2] with y drawn from the model, x_t the input and g_t the
output gradient of -log p(y) at token t: the Fisher quadratic form (Amari 1998; Martens, arXiv 1412.1193).
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One index [T, 1] per row of ``logits`` [T, V], drawn from their softmax by inverting its distribution at ``uniform``."""
    cumulative = logits.float().softmax(-1).cumsum(-1)
    found = torch.searchsorted(cumulative, uniform * cumulative[:, -1:])
    return found.clamp_(max=logits.shape[1] - 1)


def token_weights(gradients: Tensor) -> Tensor:
    """Squared norm [T] of each token's output gradient [T, N], in float32: how much its output matters."""
    return gradients.float().square().sum(-1)


def second_moment(inputs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over tokens of w_t x_t x_t^T: float32 [K, K] from inputs [T, K] and optional weights [T].

    The weights are scaled to mean one before they meet a 16-bit type, so that none of them underflows.
    """
    if weights is None:
        return (inputs.t() @ inputs).float()
    mean = weights.mean().clamp(min=torch.finfo(torch.float32).tiny)
    scaled = inputs * (weights / mean).to(inputs.dtype)[:, None]
    return (inputs.t() @ scaled).float() * mean


def blend(plain: Tensor, weighted: Tensor, share: float) -> Tensor:
    """share * plain + (1 - share) * weighted, both scaled to a mean diagonal of one (GuidedQuant, arXiv 2505.07004)."""

    def mean(moment: Tensor) -> float:
        return max(float(moment.diagonal().mean()), torch.finfo(torch.float32).tiny)

    return (weighted * ((1 - share) / mean(weighted))).add_(plain, alpha=share / mean(plain))


def fisher_scores(changes: list[Tensor], inputs: Tensor, gradients: Tensor) -> Tensor:
    """Scores [C, S]: <dW_c, sum_t g_t x_t^T> of each change dW_c [N, K] on each sequence.

    inputs [S, T, K] and gradients [S, T, N]. The damage of change c is mean_s scores[c, s]^2 / (2 T) nats per token.
    """
    n_sequences, n_rows, n_cols = len(inputs), gradients.shape[-1], inputs.shape[-1]
    scores = torch.zeros(len(changes), n_sequences, dtype=torch.float64, device=inputs.device)
    rows = max(1, CHUNK_BYTES // (4 * n_cols * (n_sequences + len(changes))))
    for start in range(0, n_rows, rows):
        part = gradients[:, :, start : start + rows]
        products = torch.bmm(part.transpose(1, 2), inputs).float().reshape(n_sequences, -1)
        stacked = torch.stack([change[start : start + rows].reshape(-1) for change in changes])
        scores += (stacked.float() @ products.t()).double()
    return scores


def damage(scores: Tensor, n_tokens: int) -> tuple[Tensor, Tensor]:
    """Nats per token and their standard error over sequences: ([C], [C]) from scores [C, S]."""
    each = scores.double().square() / (2 * n_tokens)
    return each.mean(1), each.std(1) / each.shape[1] ** 0.5


def relative_weight_error(weight: Tensor, change: Tensor) -> float:
    """|dW| / |W| in the Frobenius norm; 0 for a weight that is all zero."""
    norm = weight.float().norm()
    return float(change.float().norm() / norm) if norm > 0 else 0.0


def energy(matrix: Tensor, moment: Tensor) -> float:
    """tr(M S M^T) of a matrix [N, K] under a second moment [K, K]."""
    return float(((matrix.float() @ moment) * matrix.float()).sum())


def relative_output_error(weight: Tensor, change: Tensor, moment: Tensor) -> float:
    """sqrt(tr(dW S dW^T) / tr(W S W^T)): the share of the layer's output, on calibration inputs, that is error."""
    whole = energy(weight, moment)
    return (max(energy(change, moment), 0.0) / whole) ** 0.5 if whole > 0 else 0.0
