"""A corrected copy of a model: what checks can put right without a guess, and nothing in place."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

from bitwright.doctor.doctor import check_modules
from bitwright.doctor.model import Correction, Model
from bitwright.errors import BitwrightError, fail


def corrections(directory: Path) -> Correction:
    """Every file that a corrected copy has otherwise, or has not; each check corrects what the checks before it left."""
    changes: Correction = {}
    for module in check_modules():
        if hasattr(module, "fix"):
            model = Model(directory, corrected=changes)
            found = module.fix(model)
            closed = {finding.where for finding in model.unreadable}  # of which nothing is known, so that nothing is kept
            changes |= {name: value for name, value in found.items() if name not in closed}
    return changes


def fixed_copy(directory: Path, out: Path) -> Correction:
    """Write the corrected model at ``out``, which must not exist; weights are linked where the disk allows it.

    Raises BitwrightError when ``out`` is there already, lies within the model, or cannot be made. The copy appears whole or
    not at all.
    """
    out = Path(os.path.expanduser(out))
    _require_place(directory, out)
    changes = corrections(directory)
    try:
        scratch = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=".fixing-", suffix=".partial"))
    except OSError as error:
        raise _no_place(out, type(error).__name__) from None
    try:
        shutil.copytree(
            directory, scratch, copy_function=_link_or_copy, dirs_exist_ok=True, ignore=partial(_left_out, directory, changes)
        )
        for name, value in changes.items():
            if value is not None:
                text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
                (scratch / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        scratch.chmod(0o755)
        os.rename(scratch, out)
    except OSError as error:
        raise _no_place(out, f"{type(error).__name__}: {error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return changes


def _require_place(directory: Path, out: Path) -> None:
    if not directory.is_dir():
        raise fail(
            "fix/source",
            directory,
            saw="no directory",
            wanted="a model directory, GGUF files are made again, not corrected",
            help="bitwright doctor DIRECTORY --fix OUT",
        )
    if os.path.lexists(out):
        raise fail("fix/exists", out, saw="it exists", wanted="a new directory", help="--fix ANOTHER_NAME")
    if directory.resolve() in out.absolute().parents:
        raise fail("fix/inside", out, saw="a folder within the model", wanted="one beside it", help=f"--fix ../{out.name}")


def _no_place(out: Path, saw: str) -> BitwrightError:
    return fail("fix/place", out, saw=saw, wanted="a place that can be written to", help="--fix ANOTHER_NAME")


def _left_out(directory: Path, changes: Correction, folder: str, names: list[str]) -> list[str]:
    """Of the names in ``folder``: what is written anew, and what is neither a file nor a folder."""
    top = Path(folder) == directory
    odd = [name for name in names if not (Path(folder) / name).is_file() and not (Path(folder) / name).is_dir()]
    return odd + [name for name in names if top and name in changes]


def _link_or_copy(source: str, target: str) -> None:
    """Weights are linked; a text that is edited in one place must not change in the other."""
    try:
        if source.endswith(".safetensors"):
            os.link(os.path.realpath(source), target)
            return
    except OSError:  # another disk, or one without links
        pass
    shutil.copy2(source, target)
