"""`launch serve --cluster`: the server as a job of a scheduler, and how it is reached. Knows no HTTP."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launchyard.errors import LaunchError, UserError
from launchyard.host.folders import log_folder
from launchyard.launcher.backends.base import load_backend
from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.backends.command import Command, CommandBackend, SentCommand, load_commands

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class ServeJob:
    """A server that was sent. facts: what it says of itself once it listens; empty if nobody waited for that."""

    job_id: str
    end_with: str
    key_file: str | None
    facts: dict[str, object]


def plan_server(cluster: Cluster, argv: Sequence[str], *, name: str, gpus: int, time_limit: str | None) -> Command:
    """argv: of `launch serve`, without where it listens. UserError for a place that runs no servers."""
    _commands(cluster)
    job = f"serve-{_plain(name)}-{secrets.token_hex(2)}"
    folder = Path(log_folder()) / "serve" / job
    return Command(name=job, argv=["serve", *argv, "--json"], folder=folder, gpus=gpus, time_limit=time_limit)


def server_text(cluster: Cluster, command: Command) -> str:
    """The request that would be sent."""
    return _commands(cluster).command_text(cluster, command)


def send_server(
    cluster: Cluster, command: Command, *, has_keys: bool, on_state: Callable[[str], None], wait_seconds: float
) -> ServeJob:
    """Submits it and waits until it listens. Without keys of the user's it gets one of its own, where it can be left.

    LaunchError with its last words if it ends before.
    """
    commands = _commands(cluster)
    key_file = None
    if not has_keys:
        if not commands.SHARES_FILES:
            hint = "--api-keys FILE names a file on its nodes; --host 0.0.0.0 lets everyone there ask"
            raise UserError("a server there can be asked by everyone on its network", hint=hint)
        key_file = _write_key(command.folder)
        command = command.model_copy(update={"argv": [*command.argv, "--api-keys", key_file]})
    command.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sent = commands.send_command(cluster, command)
    on_state(f"job {sent.job_id}; it is ended with `{sent.end_with}`")
    facts = _wait_until_ready(sent, on_state, wait_seconds)
    return ServeJob(sent.job_id, sent.end_with, key_file, facts)


def _commands(cluster: Cluster) -> CommandBackend:
    return load_commands(cluster.scheduler, load_backend(cluster.scheduler).TRAITS.title)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)[:40].strip("-.")


def _write_key(folder: Path) -> str:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "api-key"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(24) + "\n")
    return str(path)


def _wait_until_ready(sent: SentCommand, on_state: Callable[[str], None], seconds: float) -> dict[str, object]:
    """What the server prints when it listens; empty if it does not within `seconds`."""
    end = time.monotonic() + seconds
    told = ""
    while time.monotonic() < end:
        if found := _facts(sent.output()):
            return found
        seen = sent.poll()
        if seen.is_over:
            words = "\n".join(sent.output().strip().splitlines()[-15:])
            raise LaunchError(f"job {sent.job_id} ended before it listened:\n{words or seen.scheduler_state}")
        state = f"{seen.state}{f': {seen.reason}' if seen.reason else ''}"
        if state != told:
            on_state(state)
            told = state
        time.sleep(POLL_SECONDS)
    return {}


def _facts(output: str) -> dict[str, object]:
    for line in output.splitlines():
        if line.startswith("{") and '"url"' in line:
            try:
                found = json.loads(line)
            except ValueError:  # half a line
                continue
            return dict(found)
    return {}
