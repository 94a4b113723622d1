"""One SLURM in one folder: its daemons configured, started, asked, ended, with all that its jobs leave behind.

Knows no state folder of a user and no command: the sandbox keeps one site for a person, tests make theirs.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from launchyard.errors import LaunchError, UserError
from launchyard.host.processes import started_at, wait_until
from launchyard.launcher.sandbox.daemons import Daemons
from launchyard.launcher.sandbox.folder import write_private
from launchyard.launcher.sandbox.namespaces import living_in, marked_namespaces
from launchyard.launcher.sandbox.slurm import conf as slurm_conf
from launchyard.launcher.sandbox.slurm import host
from launchyard.launcher.sandbox.slurm.conf import HEAD, Place, Settings

if TYPE_CHECKING:
    import psutil


READY_SECONDS = 60.0
END_SECONDS = 15.0
CONTROLLER = "slurmctld"
ACCOUNTS = "slurmdbd"
DATABASE = "mariadbd"
MUNGE = "munged"
# Below the range of outgoing connections: that range is for ports that jobs open, and the nodes share one set of ports.
_PORTS = (22100, 32000)
_SOCKET_PATH = 107  # bytes that Linux allows
_LONGEST = len("/node64/node64_67108863.4294967295")
_LEFT_ALONE = {"log", "lock", "runs"}
_READY_STATES = {"idle", "allocated", "mixed", "completing", "reserved", "planned", "drained", "draining"}


class Site(Daemons):
    """The folder is the site: any process that names the same folder sees and changes the same SLURM."""

    # -- properties ------------------------------------------------------------------------------------------------
    @property
    def conf(self) -> Path:
        """slurm.conf for people: export SLURM_CONF."""
        return self.folder / "slurm.conf"

    @property
    def settings(self) -> Settings | None:
        """Those of the site that is up or was left without `stop`; None if there is none."""
        found = self._facts().get("settings")
        return None if found is None else Settings(**found)

    @property
    def nodes(self) -> list[str]:
        return slurm_conf.node_names(self.settings) if self.settings else []

    @property
    def daemons(self) -> list[str]:
        """In the order in which they start."""
        if self.settings is None:
            return []
        accounts = [DATABASE, ACCOUNTS] if self.settings.accounting else []
        return [MUNGE, *accounts, CONTROLLER, *self.nodes]

    # -- up and down -----------------------------------------------------------------------------------------------
    def start(self, settings: Settings) -> None:
        """A new SLURM without jobs; returns when every node is idle. Removes the rest of an older one."""
        self._check_folder()
        self.stop()
        shutil.rmtree(self.folder / "log", ignore_errors=True)
        if settings.proctrack == "cgroup":
            _refuse_foreign(slurm_conf.node_names(settings))
        self._write_files(settings, {**_draw_ports(), "first_job_id": _first_job_id()})
        try:
            self.repair()
        except BaseException:
            with contextlib.suppress(LaunchError):
                self.stop()
            raise

    def repair(self) -> list[str]:
        """Starts the daemons that do not live and waits until every node answers. Returns their names."""
        missing = [daemon for daemon in self.daemons if self.pid(daemon) is None]
        for daemon in missing:
            self.start_daemon(daemon)
        if missing:
            self._wait_nodes()
        return missing

    def stop(self) -> bool:
        """Ends daemons and jobs, at once, and removes all but logs and runs. Returns True if any process lived."""
        lived = [daemon for daemon in self.daemons if self.pid(daemon) is not None]
        nodes = self._grouped()
        for daemon in reversed(lived):
            self._signal(daemon, signal.SIGTERM)
        left = self.end_processes()
        for number in (signal.SIGKILL, None):
            if wait_until(lambda: all(self.pid(daemon) is None for daemon in lived), seconds=END_SECONDS):
                break
            if number is None:
                raise LaunchError(f"these do not end, not even by SIGKILL: {', '.join(lived)}")
            for daemon in lived:
                self._signal(daemon, number)
        host.remove_cgroups(nodes)
        self._clear()
        return bool(lived or left)

    def _check_folder(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_./@+-]+", str(self.folder)):
            raise UserError(
                f"{self.folder}: SLURM's files cannot hold a path with other characters than A-Z a-z 0-9 _ . / @ + -",
                hint="set XDG_STATE_HOME to a plain folder",
            )
        if len(str(self.folder)) + _LONGEST > _SOCKET_PATH:
            raise UserError(
                f"{self.folder}: too long by {len(str(self.folder)) + _LONGEST - _SOCKET_PATH} characters for the "
                "sockets that SLURM makes in it",
                hint="set XDG_STATE_HOME to a shorter folder",
            )

    # -- daemons ---------------------------------------------------------------------------------------------------
    def start_daemon(self, daemon: str) -> None:
        """Starts one of `daemons` that does not live; returns when it answers. LaunchError with its last lines."""
        process = self._spawn(daemon)
        if not wait_until(lambda: process.poll() is not None or self._answers(daemon), seconds=READY_SECONDS):
            self._signal(daemon, signal.SIGKILL)
            raise LaunchError(f"{daemon} does not answer after {READY_SECONDS:.0f} s{self._last_lines(daemon)}")
        if process.poll() is not None:
            raise LaunchError(f"{daemon} ended with code {process.returncode}{self._last_lines(daemon)}")
        process.returncode = 0  # it is meant to outlive us: no warning, and nobody waits for it
        if daemon in self.nodes:
            self._write_namespace(daemon)

    def _spawn(self, daemon: str) -> subprocess.Popen[bytes]:
        env = host.environment(self._place().etc / "slurm.conf")
        if daemon == ACCOUNTS:
            env["MYSQL_UNIX_PORT"] = str(self.folder / "db.sock")
        if daemon == DATABASE:
            self._make_database(env)
        with open(os.open(self._log(daemon), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            process = subprocess.Popen(
                self._argv(daemon), env=env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        known = {**self._facts().get("processes", {})}
        known[daemon] = {"pid": process.pid, "started": started_at(process.pid)}
        self._write_facts(processes=known)
        return process

    def _argv(self, daemon: str) -> list[str]:
        program = host.find_program("slurmd" if daemon in self.nodes else daemon) or daemon
        etc = self._place().etc
        log = self.folder / "log"
        if daemon == MUNGE:
            # --force: its socket is for us alone, and munged would have it for everybody.
            files = [f"--socket={self._place().munge_socket}", f"--pid-file={log}/munged.pid"]
            files += [f"--key-file={etc}/munge.key", f"--seed-file={etc}/munge.seed", f"--log-file={log}/munged.log"]
            return [program, "--foreground", "--force", *files]
        if daemon == DATABASE:
            small = ["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--innodb-lock-wait-timeout=900"]
            files = [f"--datadir={self.folder}/db", f"--socket={self.folder}/db.sock", f"--pid-file={log}/mariadbd.pid"]
            return [program, "--no-defaults", "--skip-networking", f"--user={getpass.getuser()}", *files, *small]
        name = daemon if daemon in self.nodes else HEAD
        as_node = ["-N", daemon] if daemon in self.nodes else []
        return host.in_node([program, "-D", *as_node], name=name, hosts=etc / "hosts")

    def _make_database(self, env: dict[str, str]) -> None:
        data = self.folder / "db"
        if data.exists():
            return
        user = getpass.getuser()
        argv = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={user}", "--skip-test-db"]
        argv += ["--auth-root-authentication-method=socket", f"--auth-root-socket-user={user}"]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise LaunchError(f"mariadb-install-db failed\n  {(done.stdout + done.stderr).strip()[-2000:]}")

    def _answers(self, daemon: str) -> bool:
        place = self._place()
        if daemon in (MUNGE, DATABASE):
            return _is_open(str(place.munge_socket if daemon == MUNGE else self.folder / "db.sock"))
        if daemon == CONTROLLER:
            return _is_open(("127.0.0.1", place.controller_port))
        if daemon == ACCOUNTS:
            return _is_open(("127.0.0.1", place.accounting_port))
        return _is_open((slurm_conf.address_of(daemon), place.node_port))

    def _wait_nodes(self) -> None:
        states: dict[str, str] = {}

        def all_ready() -> bool:
            states.update(self.node_states())
            return set(states) == set(self.nodes) and all(state in _READY_STATES for state in states.values())

        if not wait_until(all_ready, seconds=READY_SECONDS, every=0.1):
            detail = ", ".join(f"{node} {state}" for node, state in states.items()) or "the controller does not answer"
            raise LaunchError(
                f"SLURM's nodes are not ready after {READY_SECONDS:.0f} s: {detail}", hint=self._see_logs()
            )

    def stop_daemon(self, daemon: str, number: int = signal.SIGTERM) -> None:
        """End one daemon, and no job; SLURM finds out by itself. Returns when it is gone."""
        self._signal(daemon, number)
        if not wait_until(lambda: self.pid(daemon) is None, seconds=END_SECONDS):
            raise LaunchError(f"{daemon} does not end")

    # -- processes of the nodes --------------------------------------------------------------------------------------
    def processes(self, node: str | None = None) -> list[psutil.Process]:
        """All processes in the namespaces of this site (of one node): daemons, steps, and those that jobs have started.

        A namespace is ours if the environment of a process in it has our mark.
        """
        wanted = marked_namespaces(self._is_ours)
        if node is not None:
            wanted &= self._namespaces_of(node)
        return living_in(wanted, besides=host.cgroup_members(self._grouped(node)))

    def _is_ours(self, environ: list[bytes]) -> bool:
        """Daemons have a slurm.conf that nobody exports; jobs have that of people, and SLURM's name of their node."""
        if f"SLURM_CONF={self.folder}/etc/slurm.conf".encode() in environ:
            return True
        in_job = any(variable.startswith(b"SLURMD_NODENAME=") for variable in environ)
        return in_job and f"SLURM_CONF={self.conf}".encode() in environ

    def _grouped(self, node: str | None = None) -> list[str]:
        """Nodes that have control groups, all or this one."""
        if self.settings is None or self.settings.proctrack != "cgroup":
            return []
        return [node] if node else self.nodes

    # -- asking ------------------------------------------------------------------------------------------------------
    def run(self, *argv: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """One of SLURM's commands, as a person on this machine types it; LaunchError if it takes too long."""
        try:
            return subprocess.run(
                argv, env=host.environment(self.conf), capture_output=True, text=True, timeout=seconds,
                stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise LaunchError(f"{' '.join(argv)}: no answer after {seconds:.0f} s", hint=self._see_logs()) from error

    def node_states(self) -> dict[str, str]:
        """Each node and its state as SLURM names it; empty if the controller is away. A `*` means: does not answer."""
        if not self._answers(CONTROLLER):  # its commands would try for nine seconds
            return {}
        done = self.run(
            "sinfo", "--noheader", "--Node", "--format=%N %T", f"--partition={slurm_conf.DEFAULT_PARTITION}"
        )
        return dict(line.split() for line in done.stdout.splitlines())

    def try_out(self) -> None:
        """A real step on all nodes, from a batch script; LaunchError with SLURM's message if it fails."""
        count = str(len(self.nodes))
        out = self.folder / "log" / "first-step.out"
        step = f"srun --ntasks={count} --nodes={count} hostname"
        options = [f"--nodes={count}", f"--ntasks={count}", "--time=1", "--job-name=first-step", f"--output={out}"]
        done = self.run("sbatch", *options, "--mem-per-cpu=1", f"--wrap={step}")

        def output() -> str:
            return out.read_text(errors="replace") if out.exists() else ""

        wanted = sorted(self.nodes)
        if done.returncode or not wait_until(lambda: sorted(output().split()) == wanted, seconds=READY_SECONDS):
            detail = (done.stderr or output() or "no output").strip()[-1000:]
            raise LaunchError(f"a first step on all nodes did not work\n  {detail}", hint=self._see_logs())
        wait_until(
            lambda: set(self.node_states().values()) == {"idle"}, seconds=END_SECONDS
        )  # that it leaves none busy

    # -- files -------------------------------------------------------------------------------------------------------
    def _write_files(self, settings: Settings, numbers: dict[str, int]) -> None:
        for name in (".", "etc", "state", "log", *slurm_conf.node_names(settings)):
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write_facts(settings=settings.model_dump(), numbers=numbers)
        place = self._place()
        machine = Path("/etc/hosts").read_text(errors="replace") if Path("/etc/hosts").exists() else ""
        texts = {
            place.etc / "slurm.conf": slurm_conf.slurm_conf(settings, place),
            place.etc / "gres.conf": slurm_conf.gres_conf(settings, place),
            place.etc / "cgroup.conf": slurm_conf.cgroup_conf(),
            place.etc / "slurmdbd.conf": slurm_conf.slurmdbd_conf(place),
            place.etc / "task_prolog": slurm_conf.task_prolog(place),
            place.etc / "hosts": slurm_conf.hosts_file(settings, machine=machine),
            self.conf: slurm_conf.slurm_conf(settings, place, for_people=True),
        }
        for path, text in texts.items():
            write_private(path, text)
        (place.etc / "hosts").chmod(0o644)
        (place.etc / "task_prolog").chmod(0o700)
        for number in range(settings.gpus_per_node):
            (place.etc / f"gpu{number}").symlink_to(os.devnull)
        with open(os.open(place.etc / "munge.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as key:
            key.write(os.urandom(1024))

    def _place(self) -> Place:
        return Place(self.folder, getpass.getuser(), **self._facts()["numbers"])

    def _clear(self) -> None:
        """Removes files that cannot be used again: a new start has new job ids and a new key."""
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if path.name in _LEFT_ALONE:
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


# -- the machine -----------------------------------------------------------------------------------------------------
def _is_open(address: str | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        return probe.connect_ex(address) == 0


def _draw_ports() -> dict[str, int]:
    """Different ports that nobody listens on, at any address of this machine."""
    names = ("controller_port", "node_port", "accounting_port")
    found = set[int]()
    for _ in range(1000):
        port = random.randint(*_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            found.add(port)
        if len(found) == len(names):
            return dict(zip(names, found, strict=True))
    raise OSError(f"no {len(names)} free ports between {_PORTS[0]} and {_PORTS[1]}")


def _first_job_id() -> int:
    """A job id is not used again, or nodes that remember the old job refuse the new one: they rise with the clock."""
    return 1 + int(time.time()) % 60_000_000


def _refuse_foreign(nodes: list[str]) -> None:
    """Two SLURMs whose nodes have the same names would share control groups."""
    if members := host.cgroup_members(nodes):
        raise UserError(
            f"control groups of {nodes[0]} hold processes of another SLURM: {', '.join(map(str, sorted(members)))}",
            hint="end it, or use --proctrack linuxproc",
        )
