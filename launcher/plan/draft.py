"""What a plan gathers while it is made: problems by their keys, and notes. Knows no rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class PlanDraft:
    """The problems and notes of one planning."""

    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def wrong(self, key: str, what: str) -> None:
        self.problems.append((key, what))

    def attempt(self, key: str, action: Callable[[], Any]) -> Any:
        """The action's value; None and a problem if it raises ValueError."""
        try:
            return action()
        except ValueError as error:
            text = str(error)
            self.wrong(key, text.removeprefix(f"{key}: "))
            return None
