"""A command of ours as a job of a scheduler, which is no run: its request, and the job that it became.

A backend that can has a module `command` in its folder.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from pydantic import Field

from launchyard.errors import UserError
from launchyard.launcher.backends.base import JobStatus
from launchyard.launcher.backends.request import Frozen

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster


class Command(Frozen):
    """`launch` with these arguments, on one node."""

    name: str = Field(description="Of the job.")
    argv: list[str]
    folder: Path = Field(description="For its files, on a file system that nodes share where the scheduler needs one.")
    gpus: int = 0
    time_limit: str | None = None


class SentCommand(Protocol):
    """A job that was sent."""

    @property
    def job_id(self) -> str: ...

    @property
    def end_with(self) -> str:
        """The command, as it is typed, that ends it."""
        ...

    def poll(self) -> JobStatus: ...

    def output(self) -> str:
        """What it has printed so far."""
        ...


class CommandBackend(Protocol):
    """The module `command` in the folder of a backend."""

    SHARES_FILES: bool  # the nodes see the files of this machine

    def command_text(self, cluster: Cluster, command: Command) -> str:
        """Returns the request that would be sent, for people."""

    def send_command(self, cluster: Cluster, command: Command) -> SentCommand:
        """UserError if the scheduler refuses; nothing is queued then."""


def load_commands(backend: str, title: str) -> CommandBackend:
    """UserError for a place that runs nothing but runs."""
    name = f"launchyard.launcher.backends.{backend}.command"
    if importlib.util.find_spec(name) is None:
        raise UserError(f"{title} runs no servers; take another cluster, or serve on this machine")
    return cast(CommandBackend, importlib.import_module(name))
