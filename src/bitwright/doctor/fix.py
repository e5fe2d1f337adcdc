"""A corrected copy of a model: what checks can put right without a guess, and nothing in place."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from bitwright.doctor.doctor import check_modules
from bitwright.doctor.model import Correction, Model
from bitwright.errors import fail


def corrections(directory: Path) -> Correction:
    """Every file that a corrected copy has otherwise, or has not."""
    changes: Correction = {}
    for module in check_modules():
        if hasattr(module, "fix"):
            for name, value in module.fix(Model(directory)).items():
                known = changes.get(name)
                changes[name] = {**known, **value} if known and value else value
    return changes


def fixed_copy(directory: Path, out: Path) -> Correction:
    """Write the corrected model at ``out``, which must not exist; weights are linked where the disk allows it.

    Raises BitwrightError when ``out`` is there already. The copy appears whole or not at all.
    """
    if out.exists():
        raise fail("fix/exists", out, saw="it exists", wanted="a new directory", help="--fix ANOTHER_NAME")
    changes = corrections(directory)
    scratch = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}.", suffix=".partial"))
    try:
        for path in sorted(directory.iterdir()):
            if path.is_file() and path.name not in changes:
                _link_or_copy(path.resolve(), scratch / path.name)
        for name, value in changes.items():
            if value is not None:
                (scratch / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        scratch.chmod(0o755)
        os.rename(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return changes


def _link_or_copy(source: Path, target: Path) -> None:
    """Weights are linked; a text that is edited in one place must not change in the other."""
    try:
        if source.suffix == ".safetensors":
            os.link(source, target)
            return
    except OSError:  # another disk, or one without links
        pass
    shutil.copy2(source, target)
