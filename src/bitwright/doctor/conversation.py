"""A plain conversation through a model's chat template: in a sandbox, in a process with limits of time and memory (no torch).

A template is a program of a stranger. Nested loops take hours and one power of ten all memory, some of it while the
template is compiled; so it runs in a process of its own, which is stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

from bitwright.doctor.model import Model

QUESTION, ANSWER = "What is two and two?", "It is the number four."
RAISED = (  # by an expression of a template; after any other the process ends
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
SECONDS, NBYTES = 5, 1 << 30  # that a template may take


@dataclass(frozen=True)
class Rendered:
    """A question alone, a question that asks for an answer, and what follows an answer."""

    opened: str
    asked: str
    answered_tail: str


def render(model: Model) -> Rendered | str:
    """The renderings; or what went wrong, in one line."""
    tokens = {f"{kind}_token": model.token(kind) or "" for kind in ("bos", "eos", "pad")}
    return _in_process(json.dumps({"template": model.template or "", "tokens": tokens}))


@lru_cache(maxsize=64)
def _in_process(job: str) -> Rendered | str:
    command = [sys.executable, "-P", "-m", "bitwright.doctor.conversation"]  # -P: no module of the folder that we stand in
    try:
        done = subprocess.run(command, input=job, capture_output=True, text=True, timeout=SECONDS, check=False)
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return f"it takes more than {SECONDS} seconds"
    except ValueError:
        return f"it ends the process that runs it (exit code {done.returncode})"
    return answer["error"] if "error" in answer else Rendered(**answer)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # no such limits on this system
        return
    resource.setrlimit(resource.RLIMIT_AS, (NBYTES, NBYTES))


def _render(template_text: str, tokens: dict[str, str]) -> dict[str, str]:
    from jinja2.exceptions import TemplateError

    question = [{"role": "user", "content": QUESTION}]
    try:
        template = _environment().from_string(template_text)

        def run(messages: list[dict[str, Any]], prompt: bool) -> str:
            return str(template.render(messages=messages, add_generation_prompt=prompt, tools=None, documents=None, **tokens))

        answered = run([*question, {"role": "assistant", "content": ANSWER}], False)
        return {"opened": run(question, False), "asked": run(question, True), "answered_tail": answered.rpartition(ANSWER)[2]}
    except (TemplateError, *RAISED) as error:
        words = str(error).strip().splitlines()
        return {"error": f"{type(error).__name__}: {words[0][:200] if words else ''}"}


def _environment() -> Any:
    """As transformers sets it up, with its own ``tojson`` and a ``generation`` block, which marks and changes nothing."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        def __init__(self, environment: Any) -> None:
            super().__init__(environment)
            self.tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: "2026-01-01"
    return environment


def main() -> None:
    _limit_memory()
    job = json.loads(sys.stdin.read())
    print(json.dumps(_render(job["template"], job["tokens"])))


if __name__ == "__main__":
    main()
