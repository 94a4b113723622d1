"""The S3 sandbox: one SeaweedFS for this user, with its own keys, and a cluster file that leads runs into it.

All its files are in one folder, 0700: data, keys, log, and its process. Knows nothing of runs.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import secrets
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launchyard.errors import LaunchError, UserError
from launchyard.host.processes import end_child, is_alive, started_at, wait_until
from launchyard.launcher.backends.cluster import store_environment
from launchyard.launcher.sandbox import Facts
from launchyard.launcher.sandbox.folder import alone, state_folder, write_cluster, write_private
from launchyard.launcher.sandbox.s3 import weed
from launchyard.storage.options import StoreOptions

BUCKET = "launchyard"
PROFILE = "launchyard-sandbox"
CLUSTER = "sandbox-s3"
END_SECONDS = 20.0
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


def up(*, report: Callable[[str], None]) -> Facts:
    """See Sandbox.up. UserError without the server's program, or if its port is taken."""
    with alone(_folder()):
        if _process() is None:
            weed.find_weed()
            report("starting SeaweedFS")
            _start()
        _write_cluster(report)
    return status()


def down() -> bool:
    """See Sandbox.down. LaunchError if it does not end."""
    with alone(_folder()), contextlib.suppress(ProcessLookupError):
        found = _process()
        if found is None:
            return False
        pid, started = found
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.kill(pid, number)
            if wait_until(lambda: not is_alive(pid, started), seconds=END_SECONDS):
                break
        else:
            raise LaunchError(f"process {pid} of the S3 sandbox does not end, not even by SIGKILL")
        weed.clear_sockets(_ports())
    return True


def status() -> Facts:
    """See Sandbox.status. Running means that its process lives and its port is open."""
    process = _process()
    ports = _ports()
    if not ports:
        return Facts("s3", False, str(_folder()), next_commands=("launch sandbox up s3",))
    running = process is not None and _is_open(ports["s3"])
    details: dict[str, Any] = {
        "endpoint": weed.endpoint_of(ports),
        "bucket": f"s3://{BUCKET}",
        "cluster": CLUSTER,
        "credentials_file": str(_credentials()),
        "profile": PROFILE,
        "data_bytes": sum(file.stat().st_size for file in (_folder() / "data").glob("*.dat")),
        "pid": process[0] if process else None,
    }
    following = (
        (f"launch quickstart --cluster {CLUSTER}", 'eval "$(launch sandbox env s3)"', "launch sandbox down s3")
        if running
        else ("launch sandbox up s3",)
    )
    return Facts("s3", running, str(_folder()), details, following)


def environment() -> dict[str, str]:
    """See Sandbox.environment. UserError before the first `up`."""
    if not _ports() or not _credentials().exists():
        raise UserError("the S3 sandbox has never been up", hint="launch sandbox up s3")
    return store_environment(_options())


# -- the process -----------------------------------------------------------------------------------------------------
def _start() -> None:
    keys = _keys()
    ports = weed.draw_ports(_ports())
    facts = _folder() / "server.json"
    write_private(facts, json.dumps({"ports": ports}))
    process = weed.start(_folder(), keys=keys, ports=ports, bucket=BUCKET)
    try:
        running = {"pid": process.pid, "started": started_at(process.pid), "ports": ports}
        write_private(facts, json.dumps(running))
        weed.wait_ready(process, _folder(), keys=keys, ports=ports, bucket=BUCKET)
    except BaseException:
        end_child(process)
        weed.clear_sockets(ports)
        raise
    process.returncode = 0  # it is meant to outlive us: no warning, and nobody waits for it


def _process() -> tuple[int, float] | None:
    """Process and start time of the server, if it lives."""
    facts = _facts()
    pid = facts.get("pid")
    started = facts.get("started")
    return (pid, started) if pid and started is not None and is_alive(pid, started) else None


def _is_open(port: int) -> bool:
    try:
        with socket.create_connection((weed.HOST, port), timeout=2.0):
            return True
    except OSError:
        return False


# -- its folder ------------------------------------------------------------------------------------------------------
def _folder() -> Path:
    return state_folder("s3")


def _facts() -> dict[str, Any]:
    try:
        return dict(json.loads((_folder() / "server.json").read_text()))
    except (OSError, ValueError):
        return {}


def _ports() -> dict[str, int]:
    """Those of the last start; none before the first."""
    return dict(_facts().get("ports", {}))


# -- keys ------------------------------------------------------------------------------------------------------------
def _credentials() -> Path:
    return _folder() / "credentials"


def _keys() -> weed.Keys:
    """The sandbox's keys, drawn once and kept in a credentials file as AWS tools read it."""
    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error):
        parser.read(_credentials())
        if parser.has_section(PROFILE):
            section = parser[PROFILE]
            return weed.Keys(section["aws_access_key_id"], section["aws_secret_access_key"])
    keys = weed.Keys("SANDBOX" + "".join(secrets.choice(_ALPHABET) for _ in range(13)), secrets.token_urlsafe(30))
    lines = [f"[{PROFILE}]", f"aws_access_key_id = {keys.access_key}", f"aws_secret_access_key = {keys.secret_key}"]
    write_private(_credentials(), "\n".join([*lines, ""]))
    return keys


# -- the cluster file ------------------------------------------------------------------------------------------------
def _options() -> StoreOptions:
    return StoreOptions(
        endpoint_url=weed.endpoint_of(_ports()),
        region=weed.REGION,
        profile=PROFILE,
        credentials_file=str(_credentials()),
    )


def _write_cluster(report: Callable[[str], None]) -> None:
    """`--cluster sandbox-s3`: this machine, with its runs in the sandbox."""
    storage = {"url": f"s3://{BUCKET}/runs", **_options().model_dump()}
    write_cluster("s3", {"name": CLUSTER, "scheduler": "local", "storage": storage}, report=report)
