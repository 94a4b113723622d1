"""The partitions of a SLURM site: nodes, GPUs, limits, and the accounts that a user may charge."""

from __future__ import annotations

import getpass
import re
import shutil

from launchyard.launcher.backends.offer import Offer
from launchyard.launcher.backends.slurm.client import Controller
from launchyard.launcher.backends.slurm.nodes import gpus_in

_FORMAT = "%P|%c|%m|%G|%D|%l|%a"


def offers(address: str | None) -> list[Offer]:
    """One for each kind of nodes in each partition that is up; nothing where sinfo does not answer."""
    if address is not None or shutil.which("sinfo") is None:
        return []
    slurm = Controller({})
    shown = slurm.output_of(["sinfo", "--noheader", "--exact", f"--format={_FORMAT}"])
    rows = [parts for line in shown.splitlines() if len(parts := line.strip().split("|")) == 7]
    accounts = _accounts(slurm) if rows else []
    return [_offer(row, accounts) for row in rows if row[6] == "up"]


def _offer(row: list[str], accounts: list[str]) -> Offer:
    name, cpus, megabytes, gres, nodes, limit, _ = row
    partition = name.rstrip("*")
    gpus = gpus_in(gres)
    kind = gpu_kind(gres)
    devices = f"{gpus} × {kind or 'GPU'}, " if gpus else ""
    most = f"at most {limit} an attempt" if limit != "infinite" else "no time limit"
    return Offer(
        scheduler="slurm",
        part=partition,
        title=f"SLURM, partition {partition}: {nodes} nodes of {devices}{cpus.rstrip('+')} CPUs; {most}",
        nodes=_whole(nodes) or 1,
        gpus=gpus,
        gpu=kind,
        cpus=_whole(cpus),
        memory=(_whole(megabytes) or 0) << 20 or None,
        time_limit=limit if limit not in ("infinite", "n/a") else None,
        default=name.endswith("*"),
        section={"partition": partition},
        choices={"account": accounts} if len(accounts) > 1 else {},
    )


def gpu_kind(gres: str) -> str:
    """The kind of the first GPUs in a node's generic resources; empty where the site names none."""
    found = re.search(r"\bgpu:([A-Za-z][^:,()]*):\d+", gres)
    return found[1] if found else ""


def _whole(text: str) -> int | None:
    """The number in such as 96 or 96+."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else None


def _accounts(slurm: Controller) -> list[str]:
    """Of the user; none where the site keeps no accounts."""
    if "slurmdbd" not in slurm.config().get("AccountingStorageType", ""):
        return []
    asked = [
        "sacctmgr",
        "--noheader",
        "--parsable2",
        "show",
        "associations",
        f"user={getpass.getuser()}",
        "format=Account",
    ]
    return list(dict.fromkeys(slurm.output_of(asked).split()))
