"""Rounding into llama.cpp's codebook formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.formats.base import Codes
from bitwright.formats.iq.codes import CodebookCodes
from bitwright.formats.iq.format import CODEBOOK_FORMATS, CodebookFormat
from bitwright.rounding.base import SWEEPS, Rounder, by_parts
from bitwright.rounding.kernels.codebook import Codebook
from bitwright.rounding.kernels.codebook_search import Chosen, Search
from bitwright.rounding.kernels.error_feedback import Feedback
from bitwright.rounding.kernels.grid import reciprocal
from bitwright.rounding.kernels.lattice import CodebookLattice


class IqRounder(Rounder):
    """Four or eight weights to an entry of a published table."""

    formats: ClassVar[Mapping[str, CodebookFormat]] = CODEBOOK_FORMATS
    codes: ClassVar[type[Codes]] = CodebookCodes

    def nearest(self, weight: Tensor, format: CodebookFormat) -> CodebookCodes:
        return nearest_codebook(weight, format)

    def calibrated(self, weight: Tensor, feedback: Feedback, formats: Sequence[CodebookFormat]) -> list[Codes]:
        """Error feedback by groups of eight columns, then a sweep that offers every group another choice."""

        def of(format: CodebookFormat, rows: Tensor) -> Codes:
            return codebook_feedback(rows, feedback, format, SWEEPS)

        return [by_parts(weight, feedback.rows, partial(of, format)) for format in formats]

    def descended(self, weight: Tensor, codes: CodebookCodes, moment: Tensor) -> CodebookCodes:
        return codebook_descent(weight, codes, moment)

    def lattice(self, codes: CodebookCodes) -> CodebookLattice:
        format, shape = codes.format, (codes.shape[0], -1)
        shift = codes.sign.reshape(shape) if format.shifted == format.block else None
        scale = (self._units(codes) * (codes.step.float() + 0.5)).reshape(shape)
        return CodebookLattice(format.block, scale, None, Codebook.of(format, scale.device), shift)

    def rescaled(self, codes: CodebookCodes, scale: Tensor, minimum: Tensor | None) -> CodebookCodes:
        step = (scale.reshape(-1) * reciprocal(self._units(codes)) - 0.5).round_().clamp_(0, codes.format.n_steps - 1)
        return replace(codes, step=step.to(torch.uint8))

    @staticmethod
    def _units(codes: CodebookCodes) -> Tensor:
        """What a step of each block's scale decodes to, float32 [blocks]."""
        return codes.scale.float().repeat_interleave(codes.format.record // codes.format.block) * codes.format.gain


IQ = IqRounder()


def codebook_feedback(weight: Tensor, feedback: Feedback, format: CodebookFormat, sweeps: int = 1) -> CodebookCodes:
    """Codes of ``weight`` [N, K] in ``format``, lowering tr(dW S dW^T). Raises ValueError where rows are not whole records."""
    if reason := format.unavailable(weight.shape[-1]):
        raise ValueError(f"{format.name}: {reason}")
    rounder = Search(weight.float().t().contiguous(), feedback.factor.diagonal().pow(-2), format)
    rounder.feed_back(feedback.factor)
    for _ in range(sweeps):
        rounder.descend(weight.float().t(), feedback.moment)
    return rounder.codes((weight.shape[0], weight.shape[1]))


def codebook_descent(weight: Tensor, codes: CodebookCodes, moment: Tensor) -> CodebookCodes:
    """``codes`` of ``weight`` [N, K] after a sweep under damped S = ``moment`` [K, K]; scales stay as they are."""
    chosen = Chosen.of(codes)
    chosen.descend(weight.float().t(), moment)
    return chosen.codes((weight.shape[0], weight.shape[1]))


def nearest_codebook(weight: Tensor, format: CodebookFormat) -> CodebookCodes:
    """Codes of ``weight`` [N, K] with the same search for scales, every weight as important as any other."""
    eye = torch.eye(weight.shape[1], device=weight.device)
    return codebook_feedback(weight, Feedback(eye, eye, 0.0), format, sweeps=0)
