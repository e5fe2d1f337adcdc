"""What modules do, as a hash: results that were kept are taken again only by the code that made them."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from functools import cache
from importlib import import_module

PLACE = " at 0x"  # in the words for an object that is no plain value, different in every process
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def logic_hash(*modules: str, within: str) -> str:
    """Hash of what ``modules`` do, and every module under ``within`` that they take something from: of their code without
    comments and docstrings, and of their upper-case constants as they are.

    >>> len(logic_hash("bitwright.host.logic", within="bitwright.host"))
    16
    """
    found: dict[str, str] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found[name] = _code(name)
        for key, value in vars(import_module(name)).items():
            if key.strip("_").isupper() and PLACE not in repr(value):
                found[f"{name}.{key}"] = repr(value)
            source = getattr(value, "__module__", None)
            if isinstance(source, str) and source.startswith(within):
                pending.append(source)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _code(name: str) -> str:
    """The syntax tree of a module without docstrings; nothing where its source is not to be had."""
    try:
        tree = ast.parse(inspect.getsource(import_module(name)))
    except (OSError, TypeError):
        return ""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)
