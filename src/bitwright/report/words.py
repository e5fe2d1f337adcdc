"""The terms that a report uses, each in one plain sentence, and what a divergence is comparable to (no torch)."""

from __future__ import annotations

import re
from html import escape

TERMS = {
    "KL divergence": "How far the model's next-word probabilities are from those of the 16-bit model; 0 means the same.",
    "nats": "The unit of KL divergence: at 0.01 nats a word is on average about 1 % less likely than it was; at 0.7, half.",
    "held-out": "Not used to make the model: text that neither rounding nor choosing has seen.",
    "interval": "Where the figure would lie in 95 of 100 repetitions with other texts of the same kind.",
    "top-1": "How often the most likely next token is that of the 16-bit model.",
    "top-5": "How many of the five most likely next tokens are among the five of the 16-bit model.",
    "perplexity": "How surprised a model is by a text: 10 is as unsure as between ten equally likely words.",
    "damage": "Predicted KL divergence from the 16-bit model if only this weight were changed, in nats per token.",
    "frontier": "The least predicted damage that each size can buy.",
    "noise floor": "What 16-bit arithmetic alone costs beside 32-bit arithmetic; nothing smaller can be told from zero.",
    "calibration": "Text that shows which weights matter: it shapes the rounding and the choice.",
    "output error": "Share of a layer's output that the rounding makes wrong, on calibration text.",
}
# Divergence of files that people know: llama.cpp's recipes with an importance matrix, SmolLM2-135M on Wikipedia text
# (docs/benchmarks.md, GGUF).
KNOWN = ((0.31, "Q2_K"), (0.14, "Q3_K_M"), (0.053, "Q4_K_M"))
_PATTERN = re.compile("|".join(sorted(map(re.escape, TERMS), key=len, reverse=True)))


def explained(html: str, seen: set[str]) -> str:
    """``html``, which is text without tags, with each term's first appearance explained where the pointer is.

    ``seen`` are the terms that were explained before; it grows.
    """

    def mark(match: re.Match[str]) -> str:
        term = match[0]
        if term in seen:
            return term
        seen.add(term)
        return f'<abbr tabindex="0" data-tip="{escape(TERMS[term])}">{term}</abbr>'

    return _PATTERN.sub(mark, html)


def like(kl: float) -> str:
    """Which well-known file is as far from its 16-bit model, on a small model.

    >>> like(0.06), like(0.02)
    ('about as far as Q4_K_M', 'nearer than Q4_K_M')
    """
    name = next((name for least, name in KNOWN if kl >= 0.8 * least), None)
    return f"about as far as {name}" if name else f"nearer than {KNOWN[-1][1]}"
