"""Publish what quantize wrote on a model hub: weights, card, report, and nothing that was not meant to be seen."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from bitwright.checkpoint.output import BESIDE
from bitwright.errors import BitwrightError, fail

TEXTS = (".json", ".jinja", ".md", ".html", ".txt", ".Modelfile")
IMAGES = (".png", ".svg")  # that the card shows
WEIGHTS = (".safetensors", ".gguf", ".model")
TERMS = ("LICENSE", "NOTICE", "USE_POLICY")  # files that begin like this go along
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}\b")  # what the hub's access tokens look like
CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class Sent:
    """A file that goes to the hub."""

    path: Path
    name: str  # there
    nbytes: int


def push(
    out: str | Path, repo: str, *, private: bool = False, dry_run: bool = False, endpoint: str | None = None
) -> tuple[list[Sent], str]:
    """Upload the result ``out`` as a model of the hub, in one commit.

    The access token is the one of ``hf auth login`` or HF_TOKEN; it goes into no file and no message.

    Args:
        out: What ``quantize`` wrote: a directory or a .gguf file.
        repo: ``owner/name``.
        private: Create the repository for yourself alone.
        dry_run: Look and check, but talk to nobody.
        endpoint: Of another hub.

    Returns:
        The files, and the address of the model.

    Raises:
        BitwrightError: ``out`` is no result of quantize, a file holds an access token or the path of the home directory, or the
            hub refuses.

    Example:
        >>> files, address = bitwright.push("demo-out", "me/demo-out", dry_run=True)  # doctest: +SKIP
    """
    files = files_of(Path(out))
    _require_name(repo)
    for file in files:
        _require_public(file)
    api = HfApi(endpoint=endpoint, library_name="bitwright")
    address = f"{api.endpoint}/{repo}"
    if dry_run:
        return files, address
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise fail(
                "push/public",
                repo,
                saw="the repository exists and is public",
                wanted="--private keeps it to yourself",
                help="make it private on the hub first, or name another repository",
            )
        operations = [CommitOperationAdd(file.name, str(file.path)) for file in files]
        api.create_commit(repo, operations, commit_message="Upload a model quantized by Bitwright")
    except BitwrightError:
        raise
    except Exception as error:  # the hub client raises many kinds; each means that the files did not arrive
        raise _refused(repo, error) from error
    return files, address


def files_of(out: Path) -> list[Sent]:
    """What belongs to the result ``out``: a directory's own files, or a .gguf file and what stands beside it."""
    if out.is_dir():
        pairs = [(path, path.name) for path in sorted(out.iterdir())]
    else:
        beside = {name: out.with_name(f"{out.stem}.{name}") for name in BESIDE}
        pairs = [(out, out.name), *((path, name if name == "README.md" else path.name) for name, path in beside.items())]
    known = [(path, name) for path, name in pairs if path.is_file() and not path.is_symlink() and _is_known(path)]
    names = {name for _, name in known}
    ours = any(name.endswith("bitwright.json") for name in names)
    if not ours or "README.md" not in names or not any(name.endswith((".safetensors", ".gguf")) for name in names):
        raise fail(
            "push/result",
            out,
            saw=f"files {', '.join(sorted(names)) or 'none'}",
            wanted="what bitwright quantize wrote",
            help="bitwright quantize SOURCE OUT, then bitwright push OUT USER/NAME",
        )
    return [Sent(path, name, path.stat().st_size) for path, name in known]


def _is_known(path: Path) -> bool:
    return not path.name.startswith(".") and (path.suffix in (*TEXTS, *IMAGES, *WEIGHTS) or path.name.startswith(TERMS))


def _require_name(repo: str) -> None:
    try:
        validate_repo_id(repo)
        sound = repo.count("/") == 1
    except HFValidationError:
        sound = False
    if not sound:
        raise fail("push/name", repo, saw=repr(repo), wanted="owner/name", help="bitwright push OUT USER/NAME")


def _require_public(file: Sent) -> None:
    """Raise where a text of ``file`` must not leave this machine."""
    if file.path.suffix in WEIGHTS:
        return
    secrets = [("an access token of the hub", TOKEN)]
    if token := get_token():
        secrets.append(("your access token", re.compile(re.escape(token.encode()))))
    home = os.path.expanduser("~")
    if home.count("/") > 1:  # /root names nobody
        ways = {home, json.dumps(home)[1:-1], html.escape(home)}
        written = b"|".join(re.escape(way.encode()) for way in sorted(ways))
        secrets.append(("the path of your home directory", re.compile(b"(?:" + written + rb")(?![\w.-])")))
    for what, pattern in secrets:
        if any(pattern.search(part) for part in _parts(file.path)):
            raise fail(
                "push/private",
                file.path,
                saw=what,
                wanted="files that anybody may read",
                help=f"remove it from {file.path.name}",
            )


def _parts(path: Path) -> Iterator[bytes]:
    """The file in overlapping parts."""
    with open(path, "rb") as stream:
        before = b""
        while part := stream.read(CHUNK_BYTES):
            yield before + part
            before = part[-4096:]


def _refused(repo: str, error: Exception) -> BitwrightError:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    words = str(error).strip().splitlines()
    saw = f"HTTP {status}" if status else f"{type(error).__name__}: {words[0] if words else ''}"
    helps = {401: "hf auth login, or set HF_TOKEN", 403: "use a token that may write to this name", 404: "check the name"}
    return fail(
        "push/hub",
        repo,
        saw=saw,
        wanted="the hub takes the files",
        help=helps.get(status or 0, "check the network, then try again"),
    )
