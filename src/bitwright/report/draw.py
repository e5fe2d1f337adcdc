"""Vega-Lite specifications to SVG, without a browser and without a network: the one place that loads vl-convert."""

from __future__ import annotations

import re
from typing import Any

VEGA_LITE = "6.4"
SHADOWED = re.compile(r' (?:width|height)="[\d.]+"')


def svg(spec: dict[str, Any]) -> str:
    """``spec`` drawn as an SVG element that scales with its surroundings; marks carry their description as aria-label."""
    import vl_convert

    drawn = str(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))
    head, rest = drawn.split(">", 1)
    width = re.search(r'width="([\d.]+)"', head)
    style = f' style="max-width:{float(width[1]):.0f}px"' if width else ""
    return f"{SHADOWED.sub('', head)}{style}>{rest}"
