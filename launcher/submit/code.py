"""The record of the code of a run, for code.json: git revision, uncommitted changes and versions.

Knows no recipe and no torch.
"""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from launchyard.host.environment import own_environment
from launchyard.launcher.recipe.own_code import OwnFile
from launchyard.run import own_code
from launchyard.run.layout import CODE
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.storage.redact import redact
from launchyard.training.own.source import path_of

MAX_DIFF_BYTES = 200_000
MAX_EARLIER = 100
PACKAGES = ("torch", "numpy", "pydantic", "fsspec", "tokenizers", "xxhash", "triton", "s3fs", "pyarrow")


class EarlierCode(BaseModel):
    """The code of earlier attempts, in short; `attempts`: their number when other code was recorded."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    launchyard: str
    launchyard_sha: str | None = None
    source: str | None = None
    git_sha: str | None = None
    attempts: int = 0


class OwnRecord(BaseModel):
    """The user's own file: where it lay, its frozen copy in the run directory, its functions, and the modules beside
    it that it imports.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: str
    frozen: str
    functions: list[str]
    modules: list[str] = []


class CodeSnapshot(BaseModel):
    """code.json. `diff`: uncommitted changes (tracked files only), cut at MAX_DIFF_BYTES."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    folder: str
    launchyard: str
    launchyard_sha: str | None = None  # of its own checkout, where it runs from one
    source: str | None = None  # digest of launchyard's own files; a run made before this was recorded has none
    python: str
    platform: str
    packages: dict[str, str]
    git_sha: str | None = None
    git_branch: str | None = None
    git_remote: str | None = None
    changed_files: list[str] = []
    diff: str = ""
    diff_cut: bool = False
    earlier: list[EarlierCode] = []  # the oldest first
    own: OwnRecord | None = None

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> JsonObject:
        fields: JsonObject = handler(self)
        return {name: value for name, value in fields.items() if name != "own" or value is not None}

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

    def own_line(self) -> str | None:
        """The same of the user's own file; None without one."""
        if self.own is None:
            return None
        beside = f"; with {', '.join(self.own.modules)}" if self.own.modules else ""
        return f"{self.own.frozen}: {', '.join(self.own.functions)}{beside}"


def take_snapshot(folder: Path) -> CodeSnapshot:
    """The code in and around a folder, as it is now. Works outside git and without git."""
    facts: dict[str, Any] = {
        "folder": str(folder),
        "launchyard": own_code.package_version(),
        "launchyard_sha": _own_sha(),
        "source": own_code.digest(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }
    status = run_git(folder, "status", "--porcelain=v2", "--branch", "-z", "--untracked-files=normal")
    if status is None:
        return CodeSnapshot(**facts)
    facts.update(_parse_status(status.decode(errors="replace")))
    if facts["changed_files"] and facts["git_sha"]:
        raw = run_git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv") or b""
        facts["diff"] = redact(raw[:MAX_DIFF_BYTES].decode(errors="replace"))
        facts["diff_cut"] = len(raw) > MAX_DIFF_BYTES
    remote = run_git(folder, "config", "--get", "remote.origin.url")
    facts["git_remote"] = redact(remote.decode(errors="replace").strip()) if remote else None
    return CodeSnapshot(**facts)


def with_own(code: CodeSnapshot, own: OwnFile | None) -> CodeSnapshot:
    """The same with the user's own file."""
    if own is None:
        return code
    record = OwnRecord(
        path=redact(own.path),
        frozen=own.frozen,
        functions=list(own.described.functions),
        modules=[path_of(name) for name, _ in own.source.modules],
    )
    return code.model_copy(update={"own": record})


def own_record(run: RunDir) -> OwnRecord | None:
    """Of the file that a run has now."""
    try:
        return CodeSnapshot.model_validate(run.read_json(CODE)).own
    except (FileNotFoundError, ValueError):  # of a run that was made by hand
        return None


def record_again(run: RunDir, code: CodeSnapshot) -> str | None:
    """Writes code.json for attempts that will run this code, with a short record of the code before it.

    Returns a description of the change if launchyard itself changed, for the person who resumes.
    """
    try:
        before = CodeSnapshot.model_validate(run.read_json(CODE))
    except (FileNotFoundError, ValueError):  # of a run that was made by hand
        run.write_json(CODE, code.model_dump())
        return None
    if code == before.model_copy(update={"earlier": []}):
        return None
    attempts = run.attempts()
    facts = before.model_dump(include={"launchyard", "launchyard_sha", "source", "git_sha"})
    earlier = [*before.earlier, EarlierCode(**facts, attempts=attempts[-1] + 1 if attempts else 0)][-MAX_EARLIER:]
    run.write_json(CODE, code.model_copy(update={"earlier": earlier}).model_dump())
    if code.source == before.source:
        return None
    return f"launchyard {_describe(before)} before, {_describe(code)} from here on"


def _describe(code: CodeSnapshot) -> str:
    """0.1.0 a1b2c3d+ (0123456789abcdef): version, revision, digest, as far as they are known."""
    sha = code.launchyard_sha or ""
    revision = f" {sha[:7]}{'+' if sha.endswith('-dirty') else ''}" if sha else ""
    return f"{code.launchyard}{revision} ({code.source or 'no digest'})"


def _own_sha() -> str | None:
    """Revision of the checkout that launchyard runs from (`-dirty` if it was changed); None for an installed one."""
    root = own_code.checkout()
    if root is None or not (root / ".git").exists():
        return None
    described = run_git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return described.decode().strip() if described else None


def _parse_status(text: str) -> dict[str, Any]:
    """Fields of `git status --porcelain=v2 --branch -z`; a rename has its old name as an entry of its own."""
    sha: str | None = None
    branch: str | None = None
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


def run_git(folder: Path, *args: str, env: dict[str, str] | None = None, stdin: bytes = b"") -> bytes | None:
    """Output of git, or None where there is no git, no repository, or a slow one. `env`: on top of the rest."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *args],
            env={**own_environment(), **(env or {})},
            capture_output=True,
            input=stdin,
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
