"""Checkpoints of models that see carry the names of their source, and load in these and in the names of the running class."""

import re
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from bitwright.allocate.allocate import allocate, stock
from bitwright.checkpoint.headers import read_headers
from bitwright.containers.bitsandbytes import BITSANDBYTES
from bitwright.formats.base import SIXTEEN_BIT, Packed
from bitwright.measure.subject import Subject
from bitwright.measure.table import table_of
from bitwright.models.spec import Weight
from bitwright.settings import Settings
from tests.conftest import byte_tokenizer
from tests.vision import FAMILIES, built

STATE = re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__(nf4|fp4))$")  # beside codes


def four_bit(model: Any) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_written_checkpoint_loads_in_both_spellings(tmp_path: Path, name: str) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    built(name).bfloat16().save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    subject = Subject.open(source, Settings(), to_write=True)
    every = [subject.method.unmeasured(weight) for weight in subject.source.spec.weights]  # as if pictures had passed
    table = table_of(subject.name, subject.container, subject.method, subject.source, every, {})
    half = (stock(table).nbytes + table.sixteen_bit_nbytes()) // 2
    plan = allocate(
        table, f"{half / 1e6:.4f}MB", pins=("vision=nf4-b32-dq", f"{subject.source.spec.text.path}.1.*.o_proj=16bit")
    )

    def packed_of(weight: Weight, format: str, _: object) -> Packed:
        chosen = BITSANDBYTES.format(format)
        value = weight.view.matrix(subject.source.read(weight.name))
        return Packed.of(BITSANDBYTES.rounder(chosen).nearest(value, chosen))

    out.mkdir()
    assert BITSANDBYTES.write({out: plan}, subject.source, packed_of)[out] == plan.nbytes
    refs, given = read_headers(out), read_headers(source)
    kept = {kept.name for kept in subject.source.spec.kept if kept.tied_to is None}
    names = {subject.source.written_as(one) for one in kept} | {weight.tensor for weight in subject.source.spec.weights}
    assert names == set(given)
    assert names == {STATE.sub("", stored) for stored in refs}
    assert BITSANDBYTES.read(out, subject.source.spec.weights).keys() == {
        choice.weight for choice in plan.choices if choice.format != SIXTEEN_BIT.name
    }
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    planned = {c.weight.removesuffix(".weight") for c in plan.choices if c.format != SIXTEEN_BIT.name}
    assert four_bit(model) == planned
    original = dict(built(name).bfloat16().named_parameters())
    for parameter, value in model.named_parameters():
        if parameter.removesuffix(".weight") not in planned:
            assert torch.equal(value, original[parameter]), parameter

    spelled = {weight.tensor: weight.name for weight in subject.source.spec.weights}
    spelled |= {subject.source.written_as(one): one for one in kept}
    tensors = load_file(out / "model.safetensors")
    longest = sorted(spelled, key=len, reverse=True)
    renamed = {}
    for tensor, value in tensors.items():
        own = next((one for one in longest if tensor == one or tensor.startswith(f"{one}.")), tensor)
        renamed[spelled.get(own, own) + tensor.removeprefix(own)] = value
    save_file(renamed, out / "model.safetensors", metadata={"format": "pt"})
    again, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert four_bit(again) == planned
    sample = FAMILIES[name].sample([FAMILIES[name].fixed or (4, 4)], 1)
    with torch.no_grad():
        inputs = {n: t[None] for n, t in sample.inputs.items()}
        inputs |= {n: t.bfloat16() if t.is_floating_point() else t for n, t in sample.media.items()}
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)
