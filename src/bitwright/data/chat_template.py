"""Conversations through a model's chat template: in a sandbox, in a process with limits of time and memory (no torch).

A template is a program of a stranger. Nested loops take hours and one power of ten all memory, some of it while the
template is compiled; so it runs in a process of its own, which is stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NoReturn

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
SECONDS, NBYTES = 5, 1 << 30  # that a template may take, for one conversation or a few
PER_CONVERSATION = 0.02  # seconds more for each


class TemplateFailedError(ValueError):
    """What went wrong in a template, in one line."""


@dataclass(frozen=True)
class Conversation:
    """Messages with ``role`` and ``content``, and whether an answer is to follow."""

    messages: list[dict[str, Any]]
    prompt: bool = False


def render(template: str, tokens: dict[str, str], conversations: list[Conversation]) -> list[str]:
    """Each of ``conversations`` as text; ``tokens``: bos_token, eos_token ... as the template may name them.

    Raises TemplateFailedError for a template that fails, or takes more time or memory than it may.
    """
    found = _in_process(json.dumps({"template": template, "tokens": tokens, "all": [asdict(one) for one in conversations]}))
    if isinstance(found, str):
        raise TemplateFailedError(found)
    return list(found)


def render_with(tokenizer: Any, conversations: list[Conversation]) -> list[str]:
    """The same with the template of a transformers tokenizer. Raises TemplateFailedError also where it has none."""
    try:
        template = tokenizer.get_chat_template()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TemplateFailedError(str(error).splitlines()[0][:200] if str(error) else "no template") from None
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return render(str(template), tokens, conversations)


@lru_cache(maxsize=64)
def _in_process(job: str) -> tuple[str, ...] | str:
    command = [sys.executable, "-P", "-m", "bitwright.data.chat_template"]  # -P: no module of the folder that we stand in
    seconds = SECONDS + PER_CONVERSATION * job.count('"prompt"')
    try:
        done = subprocess.run(command, input=job, capture_output=True, text=True, timeout=seconds, check=False)
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return f"it takes more than {seconds:.0f} seconds"
    except ValueError:
        return f"it ends the process that runs it (exit code {done.returncode})"
    return str(answer["error"]) if "error" in answer else tuple(answer["texts"])


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # no such limits on this system
        return
    resource.setrlimit(resource.RLIMIT_AS, (NBYTES, NBYTES))


def _rendered(template_text: str, tokens: dict[str, str], conversations: list[dict[str, Any]]) -> dict[str, Any]:
    from jinja2.exceptions import TemplateError

    try:
        template = _environment().from_string(template_text)
        return {"texts": [_text_of(template, one, tokens) for one in conversations]}
    except (TemplateError, *RAISED) as error:
        words = str(error).strip().splitlines()
        return {"error": f"{type(error).__name__}: {words[0][:200] if words else ''}"}


def _text_of(template: Any, one: dict[str, Any], tokens: dict[str, str]) -> str:
    """One conversation as text. Templates of models that see may go over the parts of a message and leave plain words out:
    where what is said is not there, it is said as a part."""

    def rendered(messages: list[dict[str, Any]]) -> str:
        return str(
            template.render(messages=messages, add_generation_prompt=one["prompt"], tools=None, documents=None, **tokens)
        )

    messages = one["messages"]
    words = [m["content"].strip() for m in messages if isinstance(m.get("content"), str) and m["content"].strip()]
    text = rendered(messages)
    if not words or any(said in text for said in words):
        return text
    try:
        other = rendered([_parted(message) for message in messages])
    except Exception:  # noqa: BLE001 - a template that knows no parts
        return text
    return other if all(said in other for said in words) and "'type': 'text'" not in other else text


def _parted(message: dict[str, Any]) -> dict[str, Any]:
    """``message`` with its words as a part."""
    content = message.get("content")
    return message | {"content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


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
    print(json.dumps(_rendered(job["template"], job["tokens"], job["all"])))


if __name__ == "__main__":
    main()
