"""Vega-Lite specifications to SVG, without a browser and without a network: the one place that loads vl-convert.

The library draws in a process of its own: it ends the process where it meets what it does not expect, such as a control
character in a label.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

VEGA_LITE = "6.4"
SHADOWED = re.compile(r' (?:width|height)="[\d.]+"')
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # in XML 1.0
SECONDS = 120


def svgs(specs: list[dict[str, Any]]) -> list[str]:
    """Each of ``specs`` drawn as an SVG element that scales with its surroundings; marks carry their description as aria-label.

    All in one process: it draws its first picture in a second and the others in a tenth of that.
    Raises RuntimeError where one cannot be drawn.
    """
    command = [sys.executable, "-P", "-m", "bitwright.report.draw"]  # -P: no module of the folder that we stand in
    job = json.dumps(printable(specs))
    done = subprocess.run(command, input=job, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [""]
        raise RuntimeError(f"vl-convert ended with exit code {done.returncode}: {words[-1][:200]}")
    return [_scaling(drawing) for drawing in json.loads(done.stdout)]


def _scaling(drawing: str) -> str:
    head, rest = drawing.split(">", 1)
    width = re.search(r'width="([\d.]+)"', head)
    style = f' style="max-width:{float(width[1]):.0f}px"' if width else ""
    return f"{SHADOWED.sub('', head)}{style}>{rest}"


def printable(value: Any) -> Any:
    """``value`` of JSON with every character replaced that no XML may hold."""
    if isinstance(value, str):
        return FORBIDDEN.sub("\ufffd", value)
    if isinstance(value, dict):
        return {printable(key): printable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [printable(part) for part in value]
    return value


def main() -> None:
    import vl_convert

    json.dump([vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE) for spec in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
