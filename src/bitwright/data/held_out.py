"""The text of the verdict, which nothing else has seen."""

from __future__ import annotations

from typing import Any

from bitwright.data.calibration import SHARES_OF, WORDS
from bitwright.data.documentation import DOCUMENTATION, documentation, passages
from bitwright.data.rows import read_domains, read_texts
from bitwright.data.samples import Sample, cut
from bitwright.errors import BitwrightError, fail

LEAST = 6
LEAST_OF_DOMAIN = 2  # what an interval needs
MOST_SHARED = 0.02  # of the passages of a text may be in another


def held_out(tokenizer: Any, source: str, count: int, length: int) -> tuple[list[Sample], tuple[str, ...]]:
    """Samples for the verdict, and the domain of each where the rows of a file name domains.

    ``source``: ``documentation`` (the half that calibration never reads) or a file. Of several domains each gets as much as
    ``count`` samples of ``length`` tokens allow, and never fewer than two samples.
    """
    texts = {"": documentation(1, 2)} if source == DOCUMENTATION else read_domains(source, tokenizer)
    if len(texts) == 1:
        name, only = texts.popitem()
        samples = cut(only, tokenizer, count, length, source, LEAST)
        return samples, (name,) * len(samples)
    found: list[Sample] = []
    names: list[str] = []
    for name, of_domain in texts.items():
        share = max(LEAST_OF_DOMAIN, count // len(texts))
        part = cut(of_domain, tokenizer, share, length, f"{source}, domain {name}", LEAST_OF_DOMAIN)
        found += part
        names += [name] * len(part)
    return found, tuple(names)


def require_unseen(source: str, calibration: str, tokenizer: Any) -> None:
    """Raise BitwrightError when the text of the verdict is what calibration reads, under whatever name, or shares much with it.

    ``calibration``: a file or a datasets id; of the words of data/calibration.py none reads what ``source`` can name.
    """
    if not calibration or calibration in SHARES_OF or calibration in WORDS:
        return
    if source == calibration:
        raise _seen(source, "the calibration text itself")
    texts = documentation(1, 2) if source == DOCUMENTATION else read_texts(source, tokenizer)
    wanted = [passage for text in texts for passage in passages(text)]
    seen = {passage for text in read_texts(calibration, tokenizer) for passage in passages(text)}
    shared = [passage for passage in wanted if passage in seen]
    if sum(map(len, shared)) > MOST_SHARED * sum(map(len, wanted)):
        raise _seen(source, f"{len(shared)} of its {len(wanted)} passages are calibration text too, such as {shared[0][:60]!r}")


def _seen(source: str, saw: str) -> BitwrightError:
    return fail(
        "held-out/seen",
        f"--held-out {source}",
        saw=saw,
        wanted="text that nothing else saw",
        help="name another file, or leave --held-out out",
    )
