"""The programs of the monitoring sandbox: finding or downloading a Prometheus, and finding a Grafana.

Downloads nothing but Debian's own package, which apt-get checks. Starts no daemon of the machine's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from launchyard.errors import UserError
from launchyard.host.environment import own_environment
from launchyard.host.folders import user_cache_folder

GRAFANA_IMAGE = "grafana/grafana:12.1.0"
GRAFANA_HOMES = ("/usr/share/grafana", "/usr/local/share/grafana", "/opt/homebrew/opt/grafana/share/grafana")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/opt/homebrew/bin"
_DOWNLOAD_SECONDS = 300
_HINT = "get it from https://prometheus.io/download and put `prometheus` and `promtool` on the PATH"


def find_prometheus(name: str = "prometheus") -> str | None:
    """The program (or `promtool`) of PATH, or the one that was fetched before."""
    fetched = _fetched_to() / "usr" / "bin" / name
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_PATH) or (str(fetched) if fetched.exists() else None)


def require_prometheus(*, report: Callable[[str], None]) -> str:
    """The program, fetched if it is missing and that is possible; the hint of the UserError tells how to get it."""
    found = find_prometheus()
    if found is None:
        fetch_prometheus(report=report)
        found = find_prometheus()
    if found is None:
        raise UserError("Prometheus is not installed", hint=_HINT)
    return found


def fetch_prometheus(*, report: Callable[[str], None]) -> None:
    """Unpack Debian's or Ubuntu's package into the user's cache: nothing is installed, and no service starts.

    UserError where there is no apt-get, or it cannot get the package.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UserError("Prometheus is not installed", hint=_HINT)
    report("fetching Debian's package of Prometheus (unpacked into the cache, nothing is installed)")
    goal = _fetched_to()
    goal.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=goal.parent) as folder:
        _download(folder)
        packages = sorted(Path(folder).glob("*.deb"))
        _run(["dpkg-deb", "--extract", str(packages[0]), f"{folder}/unpacked"], folder)
        shutil.rmtree(goal, ignore_errors=True)
        os.replace(f"{folder}/unpacked", goal)


def _download(folder: str) -> None:
    """With the lists of packages that are there, else, as root, with fresh ones. apt-get checks the hashes."""
    get = ["apt-get", "-o", "APT::Sandbox::User=root", "download", "prometheus"]
    if _run(get, folder, check=False) == "":
        return
    if os.geteuid() == 0:
        _run(["apt-get", "update"], folder)
    problem = _run(get, folder, check=False)
    if problem:
        raise UserError(f"apt-get could not download Prometheus: {problem}", hint=_HINT)


def _run(argv: list[str], folder: str, *, check: bool = True) -> str:
    """Returns an empty text, or the last line of a failed command; UserError with that line if `check`."""
    try:
        done = subprocess.run(
            argv,
            cwd=folder,
            env=own_environment(),
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    else:
        lines = (done.stderr or done.stdout).strip().splitlines()
        problem = "" if done.returncode == 0 else lines[-1] if lines else f"exit code {done.returncode}"
    if problem and check:
        raise UserError(f"{argv[0]}: {problem}", hint=_HINT)
    return problem


def _fetched_to() -> Path:
    return user_cache_folder("prometheus")


# -- Grafana ---------------------------------------------------------------------------------------------------------
def find_grafana() -> tuple[list[str], str] | None:
    """The command that starts Grafana's server, and its home; None if it is not installed."""
    home = next((home for home in GRAFANA_HOMES if os.path.isdir(home)), None)
    if home is None:
        return None
    for command in (["grafana", "server"], ["grafana-server"]):
        for path in (None, f"{_SYSTEM_PATH}:{home}/bin"):
            program = shutil.which(command[0], path=path)
            if program is not None:
                return [program, *command[1:]], home
    return None


def has_docker() -> bool:
    """Returns True if there is a Docker whose daemon answers."""
    if shutil.which("docker") is None:
        return False
    try:
        done = subprocess.run(
            ["docker", "info", "--format", "{{.OSType}}"],
            env=own_environment(), capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == "linux"
