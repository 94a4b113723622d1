"""Findings about a place, each ok, a warning or an error with its fix; and the findings of a node's probe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from launchyard.host.packages import EXTRAS
from launchyard.host.ports import PORT_RANGE

Level = Literal["ok", "warning", "error"]
LOOPBACK = ("127.0.0.1", "127.0.1.1", "::1")  # as installers write for a machine's own name


class Finding(BaseModel):
    """One checked property of a place."""

    model_config = ConfigDict(frozen=True)

    what: str
    level: Level
    found: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """Returns what `launch doctor --json` prints, with `fix` under its published key `cure`."""
        return {"what": self.what, "level": self.level, "found": self.found, "cure": self.fix}


def node_findings(seen: dict[str, Any]) -> Iterator[Finding]:
    """Findings from the answer of launcher/doctor/node_probe.py on a node."""
    host = seen["host"]
    if seen["torch"] is None:
        fix = f"{seen['executable']} -m pip install {' '.join(EXTRAS['train'])}"
        yield Finding(what="node", level="error", found=f"{host}: torch is not installed", fix=fix)
    else:
        yield Finding(what="node", level="ok", found=f"{host}: python {seen['python']}, torch {seen['torch']}")
    address = seen["address"]
    if address is None:
        fix = "names of nodes must resolve on all nodes: DNS or /etc/hosts"
        yield Finding(what="address", level="error", found=f"{host} cannot resolve its own name", fix=fix)
    elif address in LOOPBACK:
        fix = "environment: {NCCL_SOCKET_IFNAME: …, GLOO_SOCKET_IFNAME: …} of the cluster file, or correct /etc/hosts"
        yield Finding(what="address", level="warning", found=f"{host} resolves its own name to {address}", fix=fix)
    else:
        yield Finding(what="address", level="ok", found=f"{host} is {address}")
    if seen["port"]:
        yield Finding(
            what="ports", level="error", found=f"{host}: {seen['port']}", fix=f"open {PORT_RANGE} among nodes"
        )
    else:
        yield Finding(what="ports", level="ok", found=f"{PORT_RANGE} can be opened")
    if seen["storage"]:
        fix = "storage must be a folder that all nodes share, or a store that they can reach"
        yield Finding(what="storage from a node", level="error", found=f"{host}: {seen['storage']}", fix=fix)
    else:
        yield Finding(what="storage from a node", level="ok", found=f"{host} reads and writes it")
