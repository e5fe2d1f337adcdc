"""From a format to the class of its codes."""

from __future__ import annotations

from bitwright.formats.base import Codes, Format, Packed
from bitwright.formats.bnb4.codes import BlockCodes
from bitwright.formats.bnb4.format import BlockFormat
from bitwright.formats.ggml.codes import GgmlCodes
from bitwright.formats.ggml.format import GgmlFormat
from bitwright.formats.group.codes import GroupCodes
from bitwright.formats.group.format import GroupFormat
from bitwright.formats.iq.codes import CodebookCodes
from bitwright.formats.iq.format import CodebookFormat

CODES: dict[type[Format], type[Codes]] = {
    BlockFormat: BlockCodes,
    GgmlFormat: GgmlCodes,
    GroupFormat: GroupCodes,
    CodebookFormat: CodebookCodes,
}


def unpacked(packed: Packed) -> Codes:
    """The codes that ``packed`` holds as files keep them."""
    return CODES[type(packed.format)].from_tensors(packed.format, packed.shape, packed.tensors)
