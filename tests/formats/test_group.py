"""Symmetric integers in groups: packing and decoding against compressed-tensors, bit for bit."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils.helpers import calculate_qparams
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.formats.group.codes import GroupCodes
from bitwright.formats.group.format import GROUP_FORMATS, GroupFormat
from bitwright.formats.group.words import pack_words, unpack_words
from bitwright.rounding.group import nearest_group, round_groups
from bitwright.rounding.kernels.error_feedback import Feedback


def scheme(format: GroupFormat) -> QuantizationScheme:
    numbers = {"num_bits": format.bits, "group_size": format.group_size}
    return QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(type="int", symmetric=True, strategy="group", **numbers)
    )


def weight_and_feedback(n_rows: int, n_cols: int) -> tuple[torch.Tensor, Feedback]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n_rows, n_cols, generator=generator) * torch.rand(n_rows, 1, generator=generator)
    weight[0] = 0  # all-zero groups
    weight[1, 3] = 50  # an outlier
    inputs = torch.randn(3 * n_cols, n_cols, generator=generator)
    inputs[:, 1:] += 0.7 * inputs[:, :-1]
    return weight, Feedback.of(inputs.t() @ inputs)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 140), st.integers(0, 10**6))
def test_words_are_those_of_the_library_at_every_width(bits: int, n_rows: int, n_cols: int, seed: int) -> None:
    code = torch.randint(0, 1 << bits, (n_rows, n_cols), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack_words(code, bits)
    assert torch.equal(packed, pack_to_int32((code.int() - (1 << bits - 1)).to(torch.int8), bits))
    assert torch.equal(unpack_words(packed, bits, n_cols), code)


@pytest.mark.parametrize("format", GROUP_FORMATS.values(), ids=GROUP_FORMATS)
def test_the_library_decodes_and_encodes_what_we_do(format: GroupFormat) -> None:
    weight, feedback = weight_and_feedback(12, 256)
    for codes in (nearest_group(weight, format), round_groups(weight, feedback, [format])[0]):
        parts = codes.tensors()
        stored = {"weight_packed": parts["packed"], "weight_scale": parts["scale"], "weight_shape": torch.tensor(codes.shape)}
        decoded = PackedQuantizationCompressor.decompress(stored, scheme(format))["weight"]
        assert torch.equal(decoded, codes.decode(torch.bfloat16))
        again = {"weight": codes.decode(), "weight_scale": parts["scale"].float()}
        assert torch.equal(PackedQuantizationCompressor.compress(again, scheme(format))["weight_packed"], parts["packed"])
        back = GroupCodes.from_tensors(format, codes.shape, parts)
        assert torch.equal(back.decode(), codes.decode())


@pytest.mark.parametrize("format", GROUP_FORMATS.values(), ids=GROUP_FORMATS)
def test_nearest_takes_the_scales_of_the_library(format: GroupFormat) -> None:
    weight, _ = weight_and_feedback(12, 256)
    groups = weight.reshape(12, -1, format.group_size)
    scale, _ = calculate_qparams(groups.amin(2), groups.amax(2), scheme(format).weights)
    expected = torch.where(groups.abs().amax(2) == 0, 0, scale).bfloat16()
    assert torch.equal(nearest_group(weight, format).scale, expected)


@pytest.mark.parametrize("format", GROUP_FORMATS.values(), ids=GROUP_FORMATS)
def test_calibration_lowers_the_output_error(format: GroupFormat) -> None:
    weight, feedback = weight_and_feedback(24, 256)

    def error(codes: GroupCodes) -> float:
        change = codes.decode() - weight
        return float(((change @ feedback.moment) * change).sum())

    plain, once = nearest_group(weight, format), round_groups(weight, feedback, [format], sweeps=0)[0]
    swept = round_groups(weight, feedback, [format], sweeps=1)[0]
    assert error(swept) <= error(once) * (1 + 1e-5)
    assert error(swept) < 0.9 * error(plain)


def test_formats_side_by_side_are_those_one_by_one() -> None:
    weight, feedback = weight_and_feedback(12, 256)
    formats = [GROUP_FORMATS[name] for name in ("w4-g32", "w4-g64", "w4-g128")]
    for together, format in zip(round_groups(weight, feedback, formats), formats, strict=True):
        alone = round_groups(weight, feedback, [format])[0]
        assert torch.equal(together.code, alone.code)
        assert torch.equal(together.scale, alone.scale)


def test_rows_that_groups_do_not_fill_are_refused() -> None:
    weight, feedback = torch.randn(4, 96), Feedback.of(torch.eye(96))
    with pytest.raises(ValueError, match="not a multiple of 64"):
        nearest_group(weight, GROUP_FORMATS["w4-g64"])
    with pytest.raises(ValueError, match="not a multiple of 64"):
        round_groups(weight, feedback, [GROUP_FORMATS["w4-g64"]])
