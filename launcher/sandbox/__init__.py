"""Sandboxes: small real services on this machine, one file each, for trying things out. Loaded by name when asked for.

Knows the interface of all of them, and none of the services.
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
    """A sandbox at this moment. `details` for programs and people; `next_commands`: for the user to type."""

    name: str
    running: bool
    folder: str
    details: dict[str, Any] = field(default_factory=dict)
    next_commands: tuple[str, ...] = ()


class Sandbox(Protocol):
    """The interface of a sandbox: a module of this package that KINDS names. Its data outlives it."""

    def up(self, *, report: Callable[[str], None], **asked: Any) -> Facts:
        """Starts it unless it runs; returns when it can be used. UserError names the missing part.

        asked: the settings of this kind of sandbox, by the names of its command's options.
        """

    def down(self) -> bool:
        """Ends it and nothing else. Returns True if it was running."""

    def status(self) -> Facts: ...

    def environment(self) -> dict[str, str]:
        """Variables with which other programs find it; empty values are to be unset. No secrets."""


def load_sandbox(name: str) -> Sandbox:
    """The sandbox of that name; UserError lists those that exist."""
    if name not in KINDS:
        raise UserError(f"sandbox {name}: unknown; there are: {', '.join(KINDS)}")
    return cast(Sandbox, importlib.import_module(f"{__name__}.{name}.service"))
