"""An index of shards that does not describe them.

`model.safetensors.index.json` says which shard holds which tensor and how many bytes there are in all. A wrong sum misleads
memory estimates and download checks; a shard that the index does not name is never loaded, which happens when a model was
saved twice into one folder. Where `model.safetensors` is there too, transformers loads that, and other programs the shards.

Source: transformers' save_pretrained, which writes `metadata.total_size` as the sum of the tensors' bytes, and its
`modeling_utils.py`, which looks for the one file first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bitwright.checkpoint.headers import INDEX_NAME, SINGLE_NAME
from bitwright.doctor.model import Correction, Model
from bitwright.errors import Finding, Severity

SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")  # other names are the vendor's own copies


def check(model: Model) -> Iterator[Finding]:
    if not model.index or not model.refs:
        return
    if SINGLE_NAME in model.files:
        help = f"keep the newer of both: delete {SINGLE_NAME}, or {INDEX_NAME} with its shards"
        yield Finding(
            "files/two-copies", INDEX_NAME, f"{SINGLE_NAME} beside it", "one copy of the weights", help, Severity.WARNING
        )
        return
    metadata = model.index.get("metadata")
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    held = sum(ref.nbytes for ref in model.refs.values())
    if stated is not None and stated != held:
        yield Finding(
            "files/index-size",
            INDEX_NAME,
            f"total_size {stated}",
            f"total_size is what the shards hold, {held} bytes",
            f"set metadata.total_size to {held}",
            Severity.WARNING,
        )
    listed = {ref.file.name for ref in model.refs.values()}
    for name in model.files:
        if SHARD.fullmatch(name) and name not in listed:
            help = f"delete {name}, or save the model into an empty folder"
            yield Finding("files/unlisted", name, "not in the index", "every shard is in the index", help, Severity.WARNING)


def fix(model: Model) -> Correction:
    """The true sum; files that the index does not name are left out."""
    if not model.index or not model.refs or SINGLE_NAME in model.files:
        return {}
    held = sum(ref.nbytes for ref in model.refs.values())
    metadata = model.index.get("metadata")
    stated = metadata if isinstance(metadata, dict) else {}
    changes: Correction = {}
    if stated.get("total_size", held) != held:
        changes[INDEX_NAME] = {**model.index, "metadata": {**stated, "total_size": held}}
    listed = {ref.file.name for ref in model.refs.values()}
    unlisted = [name for name in model.files if SHARD.fullmatch(name) and name not in listed]
    return changes | dict.fromkeys(unlisted)
