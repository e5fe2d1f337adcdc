"""What went wrong, in four parts: where and what was seen, what was expected, and what to type next."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How grave a finding is, the gravest first."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One broken rule. ``rule`` is ``area/name``; ``help`` is a command or an edit that resolves it."""

    rule: str
    where: str
    saw: str
    wanted: str
    help: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        where, saw, wanted, help = (printable(part) for part in (self.where, self.saw, self.wanted, self.help))
        return f"{self.severity}[{self.rule}]: {where}: {saw}\n  expected: {wanted}\n  help: {help}"

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def printable(text: str) -> str:
    """``text`` without control characters and half characters, with which a model could write over the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class BitwrightError(Exception):
    """Raised wherever a rule is broken; nothing has been left half-written when it is. Exit code 2."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def in_one_line(error: BaseException, most: int = 200) -> str:
    """What a library raised: the kind, and the first line of its words."""
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0][:most]}" if words else type(error).__name__


def fail(rule: str, where: object, *, saw: str, wanted: str, help: str) -> BitwrightError:
    """The exception to raise for one broken rule."""
    return BitwrightError(Finding(rule, str(where), saw, wanted, help))
