"""The daemons of a sandbox of several nodes: their processes, their logs, and the end of all that lives on a node.

Shared by the sandboxes of SLURM and Ray. Knows neither; each lists the processes of its nodes itself.
"""

from __future__ import annotations

import contextlib
import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from launchyard.errors import UserError
from launchyard.host.processes import end_all, is_alive
from launchyard.launcher.sandbox.folder import write_private
from launchyard.launcher.sandbox.namespaces import namespace_of

if TYPE_CHECKING:
    import psutil


FACTS = "server.json"
Kind = TypeVar("Kind", bound=BaseModel)


class Daemons(ABC):
    """The folder is the site: any process that names the same folder sees and changes the same daemons."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def processes(self, node: str | None = None) -> list[psutil.Process]:
        """All processes on the nodes (on one): daemons, and those that jobs have started."""

    def pid(self, daemon: str) -> int | None:
        """The process of a daemon, if it lives; that of a node is the one that was started for it."""
        known = self._facts().get("processes", {}).get(daemon)
        return int(known["pid"]) if known and is_alive(known["pid"], known["started"]) else None

    def crash(self, node: str) -> int:
        """Kills all processes of a node, like a power cut. Returns their number. `start_daemon` starts it again."""
        return self.end_processes(node)

    def end_processes(self, node: str | None = None) -> int:
        """SIGKILL to `processes`, also to those started meanwhile. Returns their number."""
        count = 0
        for _ in range(5):
            found = self.processes(node)
            if not found:
                break
            count += len(found)
            end_all(found)
        return count

    def _signal(self, daemon: str, number: int) -> None:
        if pid := self.pid(daemon):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _namespaces_of(self, node: str) -> set[str]:
        """All namespaces that a node has had: processes of its jobs may outlive its daemon."""
        return set(self._facts().get("namespaces", {}).get(node, ()))

    def _write_namespace(self, node: str) -> None:
        now = namespace_of(self.pid(node) or 0)
        known = {
            name: [one for one in namespaces if one != now]  # a number of a namespace that is gone is used again
            for name, namespaces in self._facts().get("namespaces", {}).items()
        }
        self._write_facts(namespaces={**known, node: [*known.get(node, ()), now]})

    # -- files -------------------------------------------------------------------------------------------------------
    def _log(self, daemon: str) -> Path:
        return self.folder / "log" / f"{daemon}.out"

    def _last_lines(self, daemon: str) -> str:
        try:
            lines = self._log(daemon).read_text(errors="replace").strip().splitlines()[-8:]
        except OSError:
            lines = []
        return "".join(f"\n  {line}" for line in lines)

    def _see_logs(self) -> str:
        return f"see {self.folder}/log"

    def _facts(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / FACTS).read_text()))
        except (OSError, ValueError):
            return {}

    def _write_facts(self, **changed: Any) -> None:
        write_private(self.folder / FACTS, json.dumps({**self._facts(), **changed}))


def make_settings(kind: type[Kind], title: str, asked: dict[str, Any]) -> Kind:
    """UserError for a setting that the sandbox does not have."""
    try:
        return kind(**asked)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise UserError(f"the {title} sandbox cannot have these settings: {problems}") from error


def check_same(settings: BaseModel | None, title: str, asked: dict[str, Any]) -> None:
    """UserError if one is up with settings other than those asked for."""
    now = settings.model_dump() if settings else {}
    if other := {key: now[key] for key, value in asked.items() if now[key] != value}:
        current = ", ".join(f"{key.replace('_', '-')} {value}" for key, value in other.items())
        raise UserError(
            f"the {title} sandbox is up with {current}",
            hint=f"launch sandbox down {title.lower()}, then up again",
        )
