"""Samples as long as their texts are, and batches without padding."""

import torch
from transformers import PreTrainedTokenizerFast

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
