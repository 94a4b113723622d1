"""Calibrations of this machine in the user's cache: where they lie, and which there are. Measures nothing; light."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import ValidationError

from launchyard.host.folders import user_cache_folder
from launchyard.model.speed import CALIBRATION_VERSION, Calibration


def known_calibrations() -> tuple[Calibration, ...]:
    """Those of this machine. A file that is of another version, or broken, is as good as none: it is made again."""
    folder = user_cache_folder("calibration")
    if not folder.is_dir():
        return ()
    machine = machine_name()
    found = (_read(path) for path in sorted(folder.glob("*.json")))
    return tuple(one for one in found if one is not None and one.machine == machine)


def calibration_file(machine: str, *, threads: int) -> Path:
    digest = hashlib.sha256(f"{machine}\n{threads}".encode()).hexdigest()[:16]
    return user_cache_folder("calibration", f"{digest}.json")


def machine_name() -> str:
    """The processor, and the torch that computes on it."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "none"
    return f"{_processor()}, torch {torch}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _read(path: Path) -> Calibration | None:
    try:
        found = Calibration.model_validate_json(path.read_text())
    except (OSError, ValidationError):
        return None
    return found if found.version == CALIBRATION_VERSION else None
