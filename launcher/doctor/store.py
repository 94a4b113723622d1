"""`launch doctor` on an object store: what a run asks of it is tried, and what is missing named with its cure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from launchyard.launcher.backends.findings import Finding, Level
from launchyard.storage import files, retry
from launchyard.storage.errors import DeniedError

BUDGET_SECONDS = 10.0
CONTENT = b"0123456789"
_NEEDED = "no run works without it"
_GUIDE = "see docs/guides/object-storage.md for credentials, endpoints and the rights of a run"


@dataclass(frozen=True)
class _Trial:
    """`act` raises an error, or returns a problem in words; `without`: what follows, and `fix` in the second case."""

    what: str
    act: Callable[[], str]
    level: Level = "error"
    without: str = _NEEDED
    fix: str = ""


def store_findings(folder: str) -> Iterator[Finding]:
    """Findings about the rights in a folder of a store that can be written; leaves files in it."""
    fine = []
    for trial in _trials(folder):
        problem, fix = _try(trial)
        if problem and fix != trial.fix and trial.what == "versioning":  # no run needs to know
            yield Finding(what=trial.what, level="ok", found=f"not known: {problem}")
        elif problem:
            yield Finding(what=trial.what, level=trial.level, found=f"{problem}; {trial.without}", fix=fix)
        else:
            fine.append(trial.what)
    yield Finding(what="rights", level="ok", found=f"tried: {', '.join(fine)}")


def _try(trial: _Trial) -> tuple[str, str]:
    """Returns the problem, empty if there is none, and its fix."""
    try:
        with retry.retry_budget(BUDGET_SECONDS):
            return trial.act(), trial.fix
    except DeniedError as error:
        return str(error).removesuffix(f". {error.cure}"), error.cure
    except OSError as error:
        return str(error), _GUIDE


def _trials(folder: str) -> Iterator[_Trial]:
    yield _Trial("range", lambda: _read_range(f"{folder}/file"))
    yield _Trial("list", lambda: _list(folder))
    yield _Trial("look up", lambda: _look_up(folder))
    probes = files.probes(folder)
    for what, (level, without, fix) in _PROBES.items():
        if what in probes:
            yield _Trial(what, probes[what], level, without, fix)
    without = "old checkpoints and the files of this test stay"
    yield _Trial("delete", lambda: _delete(f"{folder}/file"), "warning", without)


_PROBES: dict[str, tuple[Level, str, str]] = {
    "multipart": ("error", "checkpoints cannot be written", ""),
    "abort": ("warning", "parts of saves that were cut short stay and are paid for", ""),
    "list uploads": (
        "warning",
        "uploads of killed workers stay and are paid for, unless a lifecycle rule of the bucket ends them "
        "(AbortIncompleteMultipartUpload)",
        "",
    ),
    "clock": ("warning", "from 15 minutes on S3 refuses all requests", "timedatectl set-ntp true, chronyc makestep"),
    "versioning": (
        "warning",
        "some files of a run are written every few seconds, and every removed checkpoint is kept",
        "a bucket without versioning, or a lifecycle rule that ends versions soon (NoncurrentVersionExpiration)",
    ),
}


def _read_range(path: str) -> str:
    files.write(path, CONTENT)
    return "" if files.read(path, 2, 3) == CONTENT[2:5] else "a range of a file comes with other bytes"


def _list(folder: str) -> str:
    return "" if "file" in files.listdir(folder) else "a file that was just written is not listed"


def _look_up(folder: str) -> str:
    found = files.size(f"{folder}/file") == len(CONTENT) and not files.exists(f"{folder}/none")
    return "" if found else "sizes are wrong, or files are found that do not exist"


def _delete(path: str) -> str:
    files.remove(path)
    try:
        files.read(path)
    except FileNotFoundError:
        return ""
    return "a removed file is still there"
