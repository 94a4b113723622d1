"""Which code ran: git revision, uncommitted changes and versions, for code.json. Knows no recipe and no torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

import launchyard
from launchyard.storage.redact import redact

MAX_DIFF_BYTES = 200_000
PACKAGE = Path(launchyard.__file__).parent  # in a checkout, a folder of links to its rooms
PACKAGES = ("torch", "numpy", "pydantic", "fsspec", "tokenizers", "xxhash", "triton", "s3fs", "pyarrow")


class CodeSnapshot(BaseModel):
    """code.json. `diff` is what was not committed (tracked files only), cut at MAX_DIFF_BYTES."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    folder: str
    launchyard: str
    launchyard_sha: str | None = None  # of its own checkout, where it runs from one
    python: str
    platform: str
    packages: dict[str, str]
    git_sha: str | None = None
    git_branch: str | None = None
    git_remote: str | None = None
    changed_files: list[str] = []
    diff: str = ""
    diff_cut: bool = False

    @property
    def dirty(self) -> bool:
        return bool(self.changed_files)

    def summary(self) -> str:
        """One line for people: `a1b2c3d + 2 changed files`."""
        if self.git_sha is None:
            return f"launchyard {self.launchyard} · not in a git repository"
        changed = len(self.changed_files)
        plus = f" + {changed} changed file{'s' if changed > 1 else ''}" if changed else ""
        return f"{self.git_sha[:7]}{plus} · launchyard {self.launchyard}"


def take_snapshot(folder: Path) -> CodeSnapshot:
    """The code in and around a folder, as it is now. Works outside git and without git."""
    facts: dict[str, Any] = {
        "folder": str(folder),
        "launchyard": _version("launchyard") or "unknown",
        "launchyard_sha": _own_sha(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }
    status = _git(folder, "status", "--porcelain=v2", "--branch", "-z", "--untracked-files=normal")
    if status is None:
        return CodeSnapshot(**facts)
    facts.update(_parse_status(status.decode(errors="replace")))
    if facts["changed_files"] and facts["git_sha"]:
        raw = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv") or b""
        facts["diff"] = redact(raw[:MAX_DIFF_BYTES].decode(errors="replace"))
        facts["diff_cut"] = len(raw) > MAX_DIFF_BYTES
    remote = _git(folder, "config", "--get", "remote.origin.url")
    facts["git_remote"] = redact(remote.decode(errors="replace").strip()) if remote else None
    return CodeSnapshot(**facts)


def keep_code(folder: Path) -> bool:
    """Copy the code that this process runs, so that a job that waits runs it too, whatever changes meanwhile.

    Only of a checkout: an installed package does not change under a job. False if nothing was copied.
    """
    if checkout() is None:
        return False
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(PACKAGE, fresh / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return True


def checkout() -> Path | None:
    """The repository that this process runs from; None for an installed package or a copy of the code."""
    root = PACKAGE.parents[1]
    return root if (root / "pyproject.toml").is_file() and PACKAGE.parent == root / "src" else None


def own_files() -> list[Path]:
    """Every file of the package, through its links."""
    return sorted(
        Path(folder, name)
        for folder, _, names in os.walk(PACKAGE, followlinks=True)
        for name in names
        if not folder.endswith("__pycache__")
    )


def pack_code() -> bytes | None:
    """The same as a zip, for nodes that share no folder with us. None for an installed package: nodes have theirs.

    Equal code makes equal bytes.
    """
    import io
    import zipfile

    if checkout() is None:
        return None
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in own_files():
            entry = zipfile.ZipInfo(
                f"{PACKAGE.name}/{path.relative_to(PACKAGE).as_posix()}"
            )  # of 1980: no time of ours
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return found.getvalue()


def _own_sha() -> str | None:
    """Revision of the checkout that launchyard runs from (`-dirty` if it was changed); None for an installed one."""
    root = checkout()
    if root is None or not (root / ".git").exists():
        return None
    said = _git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return said.decode().strip() if said else None


def _parse_status(text: str) -> dict[str, Any]:
    """Fields of `git status --porcelain=v2 --branch -z`; a rename has its old name as an entry of its own."""
    sha = branch = None
    changed: list[str] = []
    entries = iter(text.split("\0"))
    for entry in entries:
        if entry.startswith("# branch.oid ") and not entry.endswith("(initial)"):
            sha = entry.split(" ", 2)[2]
        elif entry.startswith("# branch.head "):
            branch = entry.split(" ", 2)[2]
        elif entry[:2] == "1 ":
            changed.append(entry.split(" ", 8)[8])
        elif entry[:2] == "2 ":
            changed.append(entry.split(" ", 9)[9])
            next(entries, None)
        elif entry[:2] == "u ":
            changed.append(entry.split(" ", 10)[10])
        elif entry[:2] == "? ":
            changed.append(entry[2:])
    return {"git_sha": sha, "git_branch": branch, "changed_files": changed[:1000]}


def _git(folder: Path, *args: str) -> bytes | None:
    """Output of git, or None where there is no git, no repository, or a slow one."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *args],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
