"""Sandboxes: small real services on this machine, one file each, for trying things out. Loaded by name when asked for.

Knows what all of them can do and nothing of what they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from launchyard.errors import UserError

KINDS = ("s3", "slurm", "ray", "monitoring")


@dataclass(frozen=True)
class Facts:
    """A sandbox at this moment. `details` for programs and people; `next_commands`: what to type now."""

    name: str
    running: bool
    folder: str
    details: dict[str, Any] = field(default_factory=dict)
    next_commands: tuple[str, ...] = ()


class Sandbox(Protocol):
    """What every sandbox can do. A module of this package that KINDS names is one. Its data outlives it."""

    def up(self, *, report: Callable[[str], None], **asked: Any) -> Facts:
        """Start it unless it runs; returns when it can be used. UserError says what is missing.

        asked: what this kind of sandbox lets one choose, by the names of its command's options.
        """

    def down(self) -> bool:
        """End it and nothing else; whether it was running."""

    def status(self) -> Facts: ...

    def environment(self) -> dict[str, str]:
        """Variables with which other programs find it; empty values are to be unset. No secrets."""


def load_sandbox(name: str) -> Sandbox:
    """The sandbox of that name; UserError lists those that exist."""
    if name not in KINDS:
        raise UserError(f"sandbox {name}: there is no such sandbox; there are: {', '.join(KINDS)}")
    return cast(Sandbox, importlib.import_module(f"{__name__}.{name}.service"))
