"""What scripts tell beside the words that they print, and what every result file says about itself."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

VERSIONS = ("torch", "transformers", "litgpt", "peft", "litdata", "mosaicml-streaming")


Figures = dict[str, list[float]]  # values of all rounds, by name


def tell(figures: Figures) -> None:
    """The last line of a script's output, for benchmarks/quick.py."""
    print(json.dumps({"figures": {name: [numbered(value) for value in values] for name, values in figures.items()}}))


def heard_in(output: str) -> Figures:
    """What a script told. ValueError if it told nothing."""
    last = output.splitlines()[-1] if output else ""
    if not last.startswith('{"figures"'):
        raise ValueError(f"its last line tells no figures: {last[:200]}")
    return dict(json.loads(last)["figures"])


def over(these: list[float], those: list[float]) -> list[float]:
    """Ratios, round by round."""
    return [one / other for one, other in zip(these, those, strict=True)]


def about_machine(command: str) -> dict[str, Any]:
    return {
        "date": time.strftime("%F"),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[1], 1),
        "python": platform.python_version(),
        "versions": {name: found for name in VERSIONS if (found := _version(name))},
        "commit": _commit(),
        "command": command,
    }


def numbered(value: float) -> float:
    """Four digits of it."""
    return float(f"{value:.4g}")


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        named = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        return next(named, platform.machine())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
