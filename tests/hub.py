"""A stand-in of the model hub's HTTP interface, as far as uploads and downloads need it; it keeps what it was sent."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from safetensors.torch import load_file, save_file

TOKEN = "hf_" + "a1B2c3D4e5" * 4
COMMIT = "0" * 40
REGULAR_BYTES = 10_000  # larger files go through large-file storage, as text files of the hub over 10 MB


@dataclass
class Hub:
    """What the stand-in has."""

    address: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    published: dict[str, dict[str, bytes]] = field(default_factory=dict)  # what can be fetched
    n_sent: int = 0  # bytes of it that were
    writable: bool = True


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, value: Any = None) -> None:
        body = json.dumps(value if value is not None else {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self._file(body=False)

    def _file(self, body: bool) -> bool:
        """Answer a request for a file of a published model, or for a part of it; False where the path is none."""
        path = urlsplit(self.path).path
        repository, found, rest = path[1:].partition("/resolve/")
        if not found:
            return False
        data = self.hub.published.get(repository, {}).get(unquote(rest.split("/", 1)[-1]))
        if data is None:
            missing = "EntryNotFound" if repository in self.hub.published else "RepoNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", missing)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return True
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        part = data[start : int(asked[2]) + 1 if asked and asked[2] else None]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.hub.n_sent += len(part)
            self.wfile.write(part)
        return True

    def _revision(self) -> bool:
        """Answer what a published model consists of."""
        path = urlsplit(self.path).path.removeprefix("/api/models/")
        files = self.hub.published.get("/".join(path.split("/")[:2]))
        if files is None:
            return False
        if "/tree/" in path:
            self._answer(200, [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in sorted(files.items())])
            return True
        self._answer(200, {"id": "x/y", "sha": COMMIT, "siblings": [{"rfilename": name} for name in sorted(files)]})
        return True

    def do_GET(self) -> None:
        self.hub.requests.append(f"GET {self.path}")
        if self._file(body=True) or self._revision():
            return
        known = self.hub.repositories.get(self.path.removeprefix("/api/models/").split("?")[0])
        if known is None:
            self._answer(404)
        else:
            self._answer(200, {"id": "x/y", "private": known["visibility"] == "private"})

    def do_PUT(self) -> None:
        self.hub.requests.append(f"PUT {self.path}")
        body = self._body()
        digest = self.path.rsplit("/", 1)[-1]
        if hashlib.sha256(body).hexdigest() != digest:
            self._answer(400)
            return
        self.hub.storage[digest] = body
        self._answer(200)

    def do_POST(self) -> None:
        hub, body = self.hub, self._body()
        hub.requests.append(f"POST {self.path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        elif not hub.writable:
            self._answer(403, {"error": "You don't have the rights."})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            status = 409 if name in hub.repositories else 200  # one that exists keeps its visibility
            hub.repositories.setdefault(name, {"visibility": "public", **asked})
            self._answer(status, {"url": f"{hub.address}/{name}"})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            kinds = [{"path": f["path"], "uploadMode": "lfs" if f["size"] > REGULAR_BYTES else "regular"} for f in files]
            self._answer(200, {"files": [{**kind, "shouldIgnore": False} for kind in kinds]})
        elif self.path.endswith("/objects/batch"):
            self._answer(
                200,
                {
                    "transfer": "basic",
                    "objects": [
                        {
                            "oid": o["oid"],
                            "size": o["size"],
                            "actions": {"upload": {"href": f"{hub.address}/storage/{o['oid']}", "header": {}}},
                        }
                        for o in json.loads(body)["objects"]
                    ],
                },
            )
        elif "/commit/" in self.path:
            repository = self.path.removeprefix("/api/models/").split("/commit/")[0]
            self._commit(repository, [json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404)

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.storage[value["oid"]]
        self._answer(
            200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.hub.address}/{repository}/commit/{'0' * 40}"}
        )


@contextmanager
def stand_in() -> Iterator[Hub]:
    """A hub at an address of this machine, until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def on_hub(address: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """bitwright in a fresh process that knows no other hub."""
    environ = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environ |= {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
    code = "import sys; from bitwright.cli.main import app; app(sys.argv[1:])"
    return subprocess.run([sys.executable, "-c", code, *words], env=environ, capture_output=True, text=True, check=False)


def published(directory: Path, sharded: bool) -> dict[str, bytes]:
    """The files of a model as a hub serves them, in one shard or in two."""
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    if not sharded:
        return files
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    del files["model.safetensors"]
    scratch = directory.parent / "half.safetensors"
    for shard, held in halves.items():
        save_file({name: tensors[name] for name in held}, scratch)
        files[shard] = scratch.read_bytes()
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in halves.items() for name in held}}
    return files | {"model.safetensors.index.json": json.dumps(index).encode()}
