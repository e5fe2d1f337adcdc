"""What went wrong, in four parts: the rule, where, what was seen and wanted, and what to type next."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Finding:
    """One broken rule. ``rule`` is ``area/name``; ``help`` is a command or an edit that resolves it."""

    rule: str
    where: str
    saw: str
    wanted: str
    help: str
    severity: str = "error"

    def __str__(self) -> str:
        return f"{self.severity}[{self.rule}]: {self.wanted}\n  {self.where}: {self.saw}\n  help: {self.help}"

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


class BitwrightError(Exception):
    """Raised wherever a rule is broken; nothing has been left half-written when it is. Exit code 2."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def fail(rule: str, where: object, *, saw: str, wanted: str, help: str) -> BitwrightError:
    """The exception to raise for one broken rule."""
    return BitwrightError(Finding(rule, str(where), saw, wanted, help))
