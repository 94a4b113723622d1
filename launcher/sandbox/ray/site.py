"""One Ray in one folder: its nodes started, asked, crashed, ended, with all that its jobs leave behind.

Knows no state folder of a user and no command: the sandbox keeps one site for a person, tests make theirs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from launchyard.errors import LaunchError
from launchyard.host.environment import RAY_SITE
from launchyard.host.processes import started_at, wait_until
from launchyard.launcher.backends.ray.client import Dashboard
from launchyard.launcher.sandbox.daemons import Daemons
from launchyard.launcher.sandbox.folder import write_private
from launchyard.launcher.sandbox.namespaces import living_in, marked_namespaces, namespace_of
from launchyard.launcher.sandbox.ray import host
from launchyard.launcher.sandbox.ray.host import HEAD, Settings

if TYPE_CHECKING:
    import psutil


READY_SECONDS = 120.0
END_SECONDS = 15.0
NETWORK = "network"
_LEFT_ALONE = {"log", "lock", "runs"}


class Site(Daemons):
    """The folder is the site: any process that names the same folder sees and changes the same Ray."""

    # -- properties ------------------------------------------------------------------------------------------------
    @property
    def address(self) -> str:
        """The address of its dashboard, for this user only."""
        return f"unix://{self.folder}/dashboard.sock"

    @property
    def dashboard(self) -> Dashboard:
        return Dashboard(self.address)

    @property
    def settings(self) -> Settings | None:
        """Those of the site that is up or was left without `stop`; None if there is none."""
        found = self._facts().get("settings")
        return None if found is None else Settings(**found)

    @property
    def nodes(self) -> list[str]:
        return self.settings.names if self.settings else []

    @property
    def daemons(self) -> list[str]:
        """In the order in which they start."""
        return [NETWORK, *self.nodes] if self.settings else []

    @property
    def temporary(self) -> Path | None:
        """The folder of Ray's sockets and logs; its name is short, as sockets want it."""
        found = self._facts().get("temporary")
        return None if found is None else Path(found)

    # -- up and down -----------------------------------------------------------------------------------------------
    def start(self, settings: Settings) -> None:
        """A new Ray without jobs; returns when every node is there. Removes the rest of an older one."""
        self.stop()
        shutil.rmtree(self.folder / "log", ignore_errors=True)
        (self.folder / "log").mkdir(mode=0o700, parents=True)
        self._write_facts(settings=settings.model_dump(), temporary=tempfile.mkdtemp(prefix="lyray-"))
        write_private(self.folder / "hosts", host.hosts_text(settings))
        (self.folder / "hosts").chmod(0o644)
        try:
            self.repair()
        except BaseException:
            with contextlib.suppress(LaunchError):
                self.stop()
            raise

    def repair(self) -> list[str]:
        """Starts the nodes that do not live and waits until all are there. Returns their names."""
        missing = [daemon for daemon in self.daemons if self.pid(daemon) is None]
        for daemon in missing:
            self.start_daemon(daemon, wait=False)
        if missing:
            self.wait_nodes()
        return missing

    def stop(self) -> bool:
        """Ends nodes and jobs, at once, and removes all but logs and runs. Returns True if any process lived."""
        lived = [daemon for daemon in self.daemons if self.pid(daemon) is not None]
        left = self.end_processes()
        for daemon in lived:
            self._signal(daemon, signal.SIGKILL)
        if not wait_until(lambda: all(self.pid(daemon) is None for daemon in lived), seconds=END_SECONDS):
            raise LaunchError(f"these do not end, not even by SIGKILL: {', '.join(lived)}")
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if path.name not in _LEFT_ALONE:
                path.unlink()
        return bool(lived or left)

    # -- daemons ---------------------------------------------------------------------------------------------------
    def start_daemon(self, daemon: str, *, wait: bool = True) -> None:
        """Starts one of `daemons` that does not live. LaunchError with its last lines if it ends at once."""
        process = self._spawn(daemon)

        def has_begun() -> bool:
            if daemon == NETWORK:
                return (self.folder / "dashboard.sock").exists()
            if daemon == HEAD:
                assert self.temporary is not None
                return (self.temporary / HEAD / "ray_current_cluster").exists()
            return namespace_of(process.pid) != namespace_of(os.getpid())

        if daemon == HEAD and self.temporary is not None:  # of a head that was there before
            (self.temporary / HEAD / "ray_current_cluster").unlink(missing_ok=True)
        if not wait_until(lambda: process.poll() is not None or has_begun(), seconds=READY_SECONDS):
            self._signal(daemon, signal.SIGKILL)
            raise LaunchError(f"{daemon} has not begun after {READY_SECONDS:.0f} s{self._last_lines(daemon)}")
        if process.poll() is not None:
            raise LaunchError(f"{daemon} ended with code {process.returncode}{self._last_lines(daemon)}")
        process.returncode = 0  # it is meant to outlive us: no warning, and nobody waits for it
        if daemon != NETWORK:
            self._write_namespace(daemon)
        if wait:
            self.wait_nodes([daemon])

    def _spawn(self, daemon: str) -> subprocess.Popen[bytes]:
        assert self.settings is not None and self.temporary is not None
        if daemon == NETWORK:
            argv = host.network_argv(self.settings, self.folder / "dashboard.sock")
            (self.folder / "dashboard.sock").unlink(missing_ok=True)
        else:
            for name in (daemon, host.SEEN):
                (self.temporary / name).mkdir(mode=0o700, exist_ok=True)
            network = self.pid(NETWORK)
            if network is None:
                raise LaunchError("the network of the Ray sandbox is gone", hint="launch sandbox down ray, then up")
            argv = host.node_argv(
                daemon, self.settings, network=network, hosts=self.folder / "hosts", temporary=self.temporary
            )
        with open(os.open(self._log(daemon), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            process = subprocess.Popen(
                argv, env=host.environment(self.folder), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        known = {**self._facts().get("processes", {})}
        known[daemon] = {"pid": process.pid, "started": started_at(process.pid), "at": time.time()}
        self._write_facts(processes=known)
        return process

    def wait_nodes(self, nodes: list[str] | None = None) -> None:
        """Waits until Ray counts them (all) as alive."""
        wanted = set(nodes or self.nodes)
        if not wait_until(lambda: wanted <= self.alive(), seconds=READY_SECONDS, every=0.2):
            missing = sorted(wanted - self.alive())
            log_lines = "".join(self._last_lines(node) for node in missing[:1])
            raise LaunchError(
                f"not there after {READY_SECONDS:.0f} s: {', '.join(missing)}{log_lines}", hint=self._see_logs()
            )

    def alive(self) -> set[str]:
        """Nodes that Ray counts as alive; empty if the dashboard does not answer.

        It learns late of a crash: a node that was started again counts when it has come since.
        """
        try:
            found = self.dashboard.nodes()
        except LaunchError:
            return set()
        processes = self._facts().get("processes", {})
        came = {
            str(node["raylet"]["nodeManagerHostname"]): float(node["raylet"]["startTimeMs"]) / 1000
            for node in sorted(found, key=lambda node: float(node.get("raylet", {}).get("startTimeMs", 0)))
            if node.get("raylet", {}).get("state") == "ALIVE"
        }
        return {name for name, moment in came.items() if moment >= processes.get(name, {}).get("at", 0.0) - 1.0}

    # -- processes of the nodes --------------------------------------------------------------------------------------
    def processes(self, node: str | None = None) -> list[psutil.Process]:
        """All processes on the nodes (on one): Ray's own, and those that jobs have started.

        A node is a namespace with a process in it whose environment has our mark.
        """
        wanted = marked_namespaces(lambda environ: f"{RAY_SITE}={self.folder}".encode() in environ)
        if node is not None:
            wanted &= self._namespaces_of(node)
        return living_in(wanted)

    # -- asking ------------------------------------------------------------------------------------------------------
    def run(self, *argv: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A command inside the site's network, as on its head; LaunchError if it takes too long."""
        network = self.pid(NETWORK)
        if network is None:
            raise LaunchError("the Ray sandbox is not up", hint="launch sandbox up ray")
        env = {**host.environment(self.folder), "RAY_ADDRESS": f"{host.address_of(HEAD)}:{host.GCS_PORT}"}
        try:
            return subprocess.run(
                [*host.into(network), *argv], env=env, capture_output=True, text=True, timeout=seconds,
                stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise LaunchError(f"{' '.join(argv)}: no answer after {seconds:.0f} s") from error
