"""What a change of one weight costs, in the second order of KL at the 16-bit model (pure functions).

KL(p || q) per sequence is about 1/2 E_y[(sum_t g_t . dW x_t)^2] with y drawn from the model, x_t the input and g_t the
output gradient of -log p(y) at token t: the Fisher quadratic form (Amari 1998; Martens, arXiv 1412.1193).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from bitwright.measure.traffic import Traffic

CHUNK_BYTES = 24 * 2**20  # of score products
CHUNK_ROWS = 1024  # of a matrix whose energy is taken


def token_weights(gradients: Float[Tensor, "T N"]) -> Float[Tensor, " T"]:
    """Squared norm [T] of each token's output gradient [T, N], in float32: how much its output matters."""
    return gradients.float().square().sum(-1)


def blend_into(weighted: Float[Tensor, "K K"], plain: Float[Tensor, "K K"], share: float) -> Float[Tensor, "K K"]:
    """share * plain + (1 - share) * weighted, both scaled to a mean diagonal of one, in the place of ``weighted``.

    Source: GuidedQuant, arXiv 2505.07004.
    """

    def mean(moment: Tensor) -> float:
        return max(float(moment.diagonal().mean()), torch.finfo(torch.float32).tiny)

    return weighted.mul_((1 - share) / mean(weighted)).add_(plain, alpha=share / mean(plain))


def column_scale(importance: Float[Tensor, " K"], mean_square: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """By what each column of the inputs has to grow to have the mean square ``importance`` instead of ``mean_square``:
    correlations stay, scales come from a text that somebody else has seen more of."""
    known = (mean_square > 0) & (importance > 0)
    return torch.where(known, importance / mean_square.clamp(min=torch.finfo(torch.float32).tiny), 1.0).sqrt()


def fisher_scores(changes: list[Float[Tensor, "N K"]], traffic: Traffic, n_samples: int) -> Float64[Tensor, "C S"]:
    """Scores [C, S]: <dW_c, sum_t g_t x_t^T> of each change dW_c [N, K] on each of ``n_samples`` samples.

    The damage of change c is sum_s scores[c, s]^2 / (2 T) nats per token, T being the tokens of all samples.
    """
    scores = torch.zeros(len(changes), n_samples, dtype=torch.float64, device=traffic.x.device)
    for run in traffic.runs():
        at_once = max(1, CHUNK_BYTES // (4 * run.length * traffic.x.shape[1]))
        numbers = torch.tensor(run.samples, device=scores.device).split(at_once)
        parts = zip(run.of(traffic.x).split(at_once), run.of(traffic.g).split(at_once), numbers, strict=True)
        for x, g, samples in parts:
            scores.index_add_(1, samples, _scores_of_run(changes, x.float(), g))
    return scores


def _scores_of_run(
    changes: list[Float[Tensor, "N K"]], x: Float[Tensor, "R T K"], g: Float[Tensor, "R T N"]
) -> Float64[Tensor, "C R"]:
    """The same [C, R] for R samples of as many tokens: x [R, T, K], g [R, T, N]. Some outputs at a time."""
    n_samples, n_rows, n_cols = len(x), g.shape[-1], x.shape[-1]
    scores = torch.zeros(len(changes), n_samples, dtype=torch.float64, device=x.device)
    rows = max(1, CHUNK_BYTES // (4 * n_cols * (n_samples + len(changes))))
    for start in range(0, n_rows, rows):
        products = torch.bmm(g[:, :, start : start + rows].float().transpose(1, 2), x).reshape(n_samples, -1)
        stacked = torch.stack([change[start : start + rows].float().reshape(-1) for change in changes])
        scores += (stacked @ products.t()).double()
    return scores


def damage(scores: Float[Tensor, "C S"], n_tokens: Int[Tensor, " S"]) -> tuple[Float64[Tensor, " C"], Float64[Tensor, " C"]]:
    """Nats per token and their standard error over samples: ([C], [C]) from scores [C, S] of samples of ``n_tokens`` [S].

    A sample counts as much as it has tokens.
    """
    tokens = n_tokens.to(scores.device, torch.float64)
    each = scores.double().square() / (2 * tokens) * (tokens / tokens.mean())
    known = each.numel() > len(each)  # of one sample nobody knows the spread
    spread = each.std(1) if known else torch.full_like(each[:, 0], torch.nan)
    return each.mean(1), spread / each.shape[1] ** 0.5


def relative_weight_error(weight: Float[Tensor, "N K"], change: Float[Tensor, "N K"]) -> float:
    """|dW| / |W| in the Frobenius norm; 0 for a weight that is all zero."""
    norm = weight.float().norm()
    return float(change.float().norm() / norm) if norm > 0 else 0.0


def energy(matrix: Float[Tensor, "N K"], moment: Float[Tensor, "K K"]) -> float:
    """tr(M S M^T) of a matrix [N, K] under a second moment [K, K]."""
    return sum(float((rows @ moment).mul_(rows).sum()) for rows in matrix.float().split(CHUNK_ROWS))


def output_energies(matrices: list[Float[Tensor, "N K"]], x: Float[Tensor, "M K"]) -> Float64[Tensor, "C M"]:
    """|M_c x_m|^2 of each matrix [N, K] and each token x [M, K]: what it adds to the outputs."""
    rows = x.float().t()
    return torch.stack([(matrix.float() @ rows).square_().sum(0, dtype=torch.float64) for matrix in matrices])


class Errors:
    """Relative errors and energies of several changes of one weight, gathered rows by rows."""

    def __init__(self, n_changes: int) -> None:
        self._weight = self._output = 0.0
        self._changes = [[0.0, 0.0, 0.0] for _ in range(n_changes)]

    def add(self, weight: Tensor, changes: list[Tensor], plain: Tensor, moment: Tensor) -> None:
        """Take some rows [R, K] of the weight and of its changes into account."""
        self._weight += float(weight.float().square().sum())
        self._output += energy(weight, plain)
        for sums, change in zip(self._changes, changes, strict=True):
            sums[0] += float(change.float().square().sum())
            sums[1] += energy(change, plain)
            sums[2] += energy(change, moment)

    def weight_error(self, at: int) -> float:
        return (self._changes[at][0] / self._weight) ** 0.5 if self._weight > 0 else 0.0

    def output_error(self, at: int) -> float:
        return (max(self._changes[at][1], 0.0) / self._output) ** 0.5 if self._output > 0 else 0.0

    def moment_energy(self, at: int) -> float:
        return self._changes[at][2]
