"""Every constant that a rounder depends on is part of its version, and so of the hash under which pieces are kept."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bitwright.containers.registry import CONTAINERS, container_of
from bitwright.rounding import base, bnb4, ggml, group
from bitwright.rounding.bnb4 import BNB4
from bitwright.rounding.ggml import GGML
from bitwright.rounding.group import GROUP
from bitwright.rounding.iq import IQ
from bitwright.rounding.kernels import codebook_search, damping, error_feedback, ggml_scales, scale_search


@pytest.mark.parametrize(
    ("rounder", "module", "name"),
    [
        (BNB4, bnb4, "SWEEPS"),
        (BNB4, base, "SWEEPS"),
        (BNB4, scale_search, "RATIOS"),
        (BNB4, error_feedback, "STEP"),
        (BNB4, damping, "DAMPINGS"),
        (GGML, ggml, "FINE_LEVELS"),
        (GGML, ggml_scales, "_RATIOS"),
        (GROUP, group, "RATIOS_OF_BITS"),
        (IQ, codebook_search, "RATIOS"),
        (IQ, codebook_search, "STEPS_BESIDE"),
    ],
)
def test_a_changed_constant_changes_the_version(
    rounder: base.Rounder, module: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rounder.version
    assert rounder.version == before
    monkeypatch.setattr(module, name, "changed")
    assert rounder.version != before


def test_a_constant_of_one_family_does_not_touch_another(monkeypatch: pytest.MonkeyPatch) -> None:
    before = GGML.version
    monkeypatch.setattr(codebook_search, "RATIOS", (1.0,))
    assert GGML.version == before


def test_every_format_of_a_container_has_one_rounder() -> None:
    for name in CONTAINERS:
        container = container_of(name)
        for format in container.formats.values():
            owners = [rounder for rounder in container.rounders if format.name in rounder.formats]
            assert len(owners) == (0 if format.name == "16bit" else 1)


def test_every_process_finds_the_same_version() -> None:
    code = (
        "from bitwright.containers.registry import *; print(*(r.version for n in CONTAINERS for r in container_of(n).rounders))"
    )
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert fresh == [rounder.version for name in CONTAINERS for rounder in container_of(name).rounders]
