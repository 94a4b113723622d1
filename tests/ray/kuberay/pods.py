"""Pods without Kubernetes: each in namespaces of its own, on a network of their own that leads nowhere else.

A pod has an address, a host name, a table of processes, a /dev/shm, a /tmp/ray and the files of its ConfigMaps. What
runs in it is process 1, as in a container, and what a kubelet does to it is done here: it is started again when it
has ended, and told to end with its time of grace.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from launchyard.errors import LaunchError
from launchyard.host.environment import own_environment
from launchyard.host.processes import wait_until
from launchyard.launcher.backends.ray.client import Dashboard
from tests.ray.kuberay.operator import Pod, bytes_in, head_service

NETWORK = "10.88.0"
ROOT = Path(__file__).parents[3]
HOST = f"{NETWORK}.1"  # of this machine, as pods see it
_READY_SECONDS = 120.0
_TIED = ["setpriv", "--pdeathsig", "KILL", "--"]  # to the test, also if that is killed
_RELAY = [sys.executable, "-m", "launchyard.launcher.sandbox.ray.relay"]
# Inside a pod, before its container's command: the network, the mounts, the name.
_BEGIN = """
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip link set lo up && ip addr add {address}/24 dev eth0 && ip link set eth0 up && ip route add default via {host}
hostname {name} && mount --bind {hosts} /etc/hosts && mount --bind /dev/null /etc/resolv.conf
mkdir -p /dev/shm && mount -t tmpfs -o size={shared} shm /dev/shm
mkdir -p /tmp/ray && mount --bind {ray} /tmp/ray
{mounts}
exec "$@"
"""


def why_no_pods() -> str | None:
    """What lacks for them here."""
    if os.geteuid() != 0:
        return "needs root, for networks and mounts"
    missing = [name for name in ("ip", "nsenter", "unshare", "setpriv", "bash") if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "ip", "link", "add", "br0", "type", "bridge"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"no bridges here: {tried.stderr.strip()}" if tried.returncode else None


@dataclass
class Running:
    """A pod that is up. `process` is the outer end of its namespaces; killing it kills all that is inside."""

    pod: Pod
    number: int
    process: subprocess.Popen[bytes]
    first: int  # process 1 of the pod, as it is seen from here
    starts: int = 1

    @property
    def address(self) -> str:
        return address_of(self.number)


def address_of(number: int) -> str:
    return f"{NETWORK}.{number + 2}"


@dataclass
class Pods:
    """A network and its pods. `secrets`: name -> variables, which no manifest holds."""

    folder: Path
    secrets: dict[str, dict[str, str]]
    python_path: str
    doors: dict[int, int] = field(default_factory=dict)  # port of HOST -> port of this machine's own loopback
    _network: subprocess.Popen[bytes] | None = None
    _running: dict[str, Running] = field(default_factory=dict)
    _ending: set[str] = field(default_factory=set)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _closed: threading.Event = field(default_factory=threading.Event)
    _relays: list[subprocess.Popen[bytes]] = field(default_factory=list)

    # -- the network -------------------------------------------------------------------------------------------------
    def open(self) -> None:
        self._network = subprocess.Popen([*_TIED, "unshare", "--net", "sleep", "infinity"], start_new_session=True)
        network = self._network.pid
        assert wait_until(lambda: _net_of(network) != _net_of(os.getpid()), seconds=5, every=0.02)
        # Else a bridge has the address of one of its ends, and another one when that goes: nobody finds it for a while.
        bridge = f"link add br0 address {_hardware(255)} type bridge"
        for words in ("link set lo up", bridge, f"addr add {HOST}/24 dev br0", "link set br0 up"):
            self._ip(*words.split())
        for port, theirs in self.doors.items():
            self._open_door(port, theirs)
        self._relay([*self.inside(), *_RELAY, str(self._socket), address_of(0), "8265"])
        threading.Thread(target=self._keep_up, daemon=True).start()

    def _open_door(self, port: int, theirs: int) -> None:
        """Two relays with a socket of the file system between them, which knows no networks."""
        socket = self.folder / f"{port}.sock"
        self._relay([*_RELAY, str(socket), "127.0.0.1", str(theirs)])
        self._relay([*self.inside(), sys.executable, "-m", "tests.ray.kuberay.door", HOST, str(port), str(socket)])
        assert wait_until(lambda: self.answers(HOST, port), seconds=60, every=0.1)

    def _relay(self, argv: list[str]) -> None:
        env = {**os.environ, "PYTHONPATH": self.python_path}
        self._relays.append(subprocess.Popen([*_TIED, *argv], env=env, cwd=ROOT, start_new_session=True))

    @property
    def _socket(self) -> Path:
        return self.folder / "dashboard.sock"

    def nodes(self) -> list[str]:
        """Host names of the nodes that Ray's dashboard calls alive; none while it does not answer."""
        try:
            found = Dashboard(f"unix://{self._socket}").nodes()
        except LaunchError:
            return []
        raylets = [one.get("raylet", {}) for one in found]  # a young head has no more of a node than this
        return sorted(str(one["nodeManagerHostname"]) for one in raylets if one.get("state") == "ALIVE")

    def answers(self, host: str, port: int) -> bool:
        probe = f"import socket; socket.create_connection(({host!r}, {port}), 1).close()"
        done = subprocess.run([*self.inside(), sys.executable, "-c", probe], capture_output=True, check=False)
        return done.returncode == 0

    def _ip(self, *words: str) -> None:
        subprocess.run([*self.inside(), "ip", *words], check=True, capture_output=True)

    def inside(self) -> list[str]:
        """The prefix of a command line on this machine's side of the network."""
        assert self._network is not None
        return ["nsenter", f"--target={self._network.pid}", "--net", "--"]

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            for running in self._running.values():
                _kill(running.process)
            self._running.clear()
        for process in (*self._relays, *([self._network] if self._network else [])):
            _kill(process)

    # -- pods ----------------------------------------------------------------------------------------------------------
    def apply(self, pods: list[Pod]) -> None:
        """Starts them all, the head first: a worker's init container waits for it."""
        hosts = self.folder / "hosts"
        names = [f"{address_of(number)} {pod.name}" for number, pod in enumerate(pods)]
        hosts.write_text("\n".join(["127.0.0.1 localhost", f"{address_of(0)} {head_service(pods[0])}", *names, ""]))
        for number, pod in enumerate(pods):
            self._start(pod, number)
            if pod.is_head:
                assert wait_until(lambda: self.answers(address_of(0), 6379), seconds=_READY_SECONDS, every=0.2), (
                    self.log("head")
                )

    def _start(self, pod: Pod, number: int, *, starts: int = 1) -> None:
        own = self.folder / f"{pod.name}-{starts}"
        (own / "ray").mkdir(parents=True)
        mounts = []
        for place, (folder, texts) in enumerate(pod.files.items()):
            source = own / f"files-{place}"
            source.mkdir()
            for name, text in texts.items():
                (source / name).write_text(text)
            mounts.append(f"mkdir -p {folder} && mount --bind {source} {folder}")
        script = _BEGIN.format(
            address=address_of(number), host=HOST, name=pod.name, hosts=self.folder / "hosts",
            shared=bytes_in(pod.shared_memory), ray=own / "ray", mounts="\n".join(["set -e", *mounts]),
        )  # fmt: skip
        unshare = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with open(self.folder / f"{pod.name}.log", "ab") as log:
            process = subprocess.Popen(
                [*_TIED, *self.inside(), *unshare, "sh", "-ec", script, "sh", *pod.argv],
                env=self._environment(pod), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        first = self._first(process)
        with contextlib.suppress(subprocess.CalledProcessError):  # of the pod before it, whose end is cleared late
            self._ip("link", "del", f"v{number}")
        self._ip("link", "add", f"v{number}", "type", "veth", *self._eth0(number, first))
        self._ip("link", "set", f"v{number}", "master", "br0", "up")
        with self._lock:
            self._running[pod.name] = Running(pod, number, process, first, starts)

    @staticmethod
    def _eth0(number: int, first: int) -> list[str]:
        """The end of a pod; a container that is started again in its pod has the same one."""
        return ["peer", "name", "eth0", "address", _hardware(number), "netns", str(first)]

    def _environment(self, pod: Pod) -> dict[str, str]:
        """That of the image, of the pod's Secrets, and its own."""
        path = f"{os.path.dirname(sys.executable)}:{os.defpath}"
        kept = {name: value for name, value in own_environment().items() if name in ("LANG", "TMPDIR")}
        image = {
            **kept,
            "PATH": path,
            "HOME": f"{self.folder}/home-{pod.name}",
            "PYTHONPATH": self.python_path,
            "OMP_NUM_THREADS": "1",
        }
        secret = {key: value for name in pod.secrets for key, value in self.secrets[name].items()}
        return {**image, **secret, **pod.env}

    @staticmethod
    def _first(process: subprocess.Popen[bytes]) -> int:
        """The only child of `unshare --fork`: process 1 of the pod."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        assert wait_until(lambda: bool(children.read_text().split()), seconds=10, every=0.02)
        return int(children.read_text().split()[0])

    def _keep_up(self) -> None:
        """A container that has ended is started again, as restartPolicy Always means it, after a while."""
        while not self._closed.wait(1.0):
            with self._lock:
                ended = [one for one in self._running.values() if one.process.poll() is not None]
                for one in ended:
                    if one.pod.name not in self._ending and not self._closed.is_set():
                        self._start(one.pod, one.number, starts=one.starts + 1)

    # -- what happens to them ------------------------------------------------------------------------------------------
    def names(self) -> list[str]:
        return list(self._running)

    def kill(self, name: str) -> None:
        """Everything in the pod at once, as when its node is lost. It is started again."""
        os.kill(self._running[name].first, signal.SIGKILL)

    def remove(self, name: str) -> float:
        """As `kubectl delete pod`: TERM, KILL after the time of grace; it stays away. Seconds until its end."""
        running = self._running[name]
        self._ending.add(name)
        began = time.monotonic()
        os.kill(running.first, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(running.pod.grace_seconds)
        _kill(running.process)
        return time.monotonic() - began

    def add(self, name: str) -> None:
        """In place of one that was removed."""
        with self._lock:
            running = self._running[name]
            self._start(running.pod, running.number, starts=running.starts + 1)
            self._ending.discard(name)

    def starts(self, name: str) -> int:
        return self._running[name].starts

    def run(self, name: str, script: str, *, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """A shell in a pod, as `kubectl exec`."""
        running = self._running[name]
        enter = ["nsenter", f"--target={running.first}", "--net", "--uts", "--mount", "--pid", "--"]
        return subprocess.run(
            [*enter, "bash", "-c", script], env=self._environment(running.pod), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]


def _hardware(number: int) -> str:
    """An address of a network card."""
    return f"02:00:00:00:88:{number:02x}"


def _net_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def network_of_pods(folder: Path, *, secrets: dict[str, dict[str, str]], doors: dict[int, int]) -> Iterator[Pods]:
    """A network without pods, which is gone afterwards with all that ran in it."""
    made = Pods(folder, secrets, str(ROOT / "src"), doors)
    try:
        made.open()
        yield made
    finally:
        made.close()
