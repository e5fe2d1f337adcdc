"""Samples as long as their texts are, and batches without padding."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from bitwright.data import samples
from bitwright.data.samples import Sample, batches, cut


def test_short_texts_are_samples_of_their_own_length(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["one two three", "", "word " * 300, "a b"]
    lengths = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    whole = lengths[2] // 64
    found = cut(texts, tokenizer, 100, 64, "x", 2)
    assert [sample.n_tokens for sample in found] == [lengths[0], *[64] * whole, lengths[3]]
    assert sum(sample.n_tokens for sample in cut(texts, tokenizer, 2, 64, "x", 2)) <= 2 * 64


def test_batches_hold_samples_of_one_length_in_their_order_and_nothing_else() -> None:
    lengths = [5, 9, 5, 5, 9, 5, 2]
    samples = [Sample.of(torch.full((n,), i)) for i, n in enumerate(lengths)]
    found = batches(samples, 12, first=10)
    assert [batch.at for batch in found] == [(10, 12), (13, 15), (11,), (14,), (16,)]
    for batch in found:
        for at, ids in zip(batch.at, batch.inputs["input_ids"], strict=True):
            assert torch.equal(ids, samples[at - 10].ids)
            assert batch.n_tokens == samples[at - 10].n_tokens


def test_samples_with_other_inputs_or_other_scored_positions_are_others() -> None:
    plain = Sample.of([3, 4, 5])
    masked = Sample(plain.inputs, torch.tensor([False, True, True]))
    typed = Sample({**plain.inputs, "token_type_ids": torch.tensor([0, 0, 1])})
    assert len({plain.digest(), masked.digest(), typed.digest(), Sample.of([3, 4, 6]).digest()}) == 4
    assert (plain.n_scored, masked.n_scored) == (3, 2)
    assert [batch.at for batch in batches([plain, typed, masked], 100)] == [(0, 2), (1,)]


def test_of_a_text_that_is_far_too_long_windows_are_read_evenly(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "LEAST_READ", 0)
    monkeypatch.setattr(samples, "WINDOW", 200)
    read = []
    texts = ["".join(f"{i:05d} " for i in range(20_000)), "short"]

    def counting(text: str, **options: object) -> object:
        read.append(text)
        return tokenizer(text, **options)

    counting.bos_token_id = None  # type: ignore[attr-defined]
    found = cut(texts, counting, 8, 32, "x", 2)
    assert sum(map(len, read)) <= samples.CHARACTERS_PER_TOKEN * 8 * 32 + samples.WINDOW
    starts = [int(text.split()[1]) for text in read]
    assert starts == sorted(starts)
    assert starts[-1] > 19_000
    assert sum(sample.n_tokens for sample in found) <= 8 * 32
