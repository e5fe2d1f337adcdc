"""Source code that is on every Python installation: modules of the standard library."""

from __future__ import annotations

import importlib.util
from pathlib import Path

CODE = "code"  # how it is asked for
MODULES = (
    "argparse",
    "ast",
    "calendar",
    "collections",
    "configparser",
    "csv",
    "dataclasses",
    "datetime",
    "difflib",
    "email.message",
    "fractions",
    "heapq",
    "http.client",
    "inspect",
    "json.decoder",
    "logging",
    "pathlib",
    "random",
    "shutil",
    "statistics",
    "subprocess",
    "textwrap",
    "threading",
    "tokenize",
    "urllib.parse",
    "zipfile",
)


def library_code() -> list[str]:
    """The text of each of MODULES whose source is installed."""
    specs = [importlib.util.find_spec(name) for name in MODULES]
    paths = [Path(spec.origin) for spec in specs if spec and spec.origin and spec.origin.endswith(".py")]
    return [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
