"""The code of two runs as one unified diff, uncommitted changes included, where a repository here has both commits.

Git does all the work, with objects and an index of its own in a folder that goes again: the repository stays as it is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from launchyard.launcher.submit.code import MAX_DIFF_BYTES, CodeSnapshot, run_git
from launchyard.storage.redact import redact
from launchyard.training.own.source import OwnSource, path_of


@dataclass(frozen=True)
class CodeDiff:
    """`text`: of git; empty if there is none, or `note` says why it cannot be made. `note` also says what it lacks."""

    text: str
    note: str = ""

    def after(self, text: str) -> CodeDiff:
        """The same behind the diff of the user's own files."""
        return CodeDiff(text + self.text, self.note)


def own_diff(first: OwnSource | None, second: OwnSource | None) -> str:
    """Of the files that `code` names, and of the modules beside them."""
    old, new = (_texts(one) for one in (first, second))
    lines = [line for name in dict.fromkeys([*old, *new]) for line in _file_diff(old.get(name), new.get(name))]
    return redact("".join(lines)[:MAX_DIFF_BYTES])


def _texts(source: OwnSource | None) -> dict[str, tuple[str, list[str]]]:
    """Each file by what it is compared as: the one that `code` names may be called otherwise on the other side."""
    if source is None:
        return {}
    modules = {path_of(name): (path_of(name), raw) for name, raw in source.modules}
    both = {"": (os.path.basename(source.name), source.raw), **modules}
    return {key: (name, raw.decode().splitlines(keepends=True)) for key, (name, raw) in both.items()}


def _file_diff(old: tuple[str, list[str]] | None, new: tuple[str, list[str]] | None) -> Iterator[str]:
    before, after = (None if one is None else one[1] for one in (old, new))
    fromfile, tofile = (f"{side}/{one[0]}" if one else "/dev/null" for side, one in (("a", old), ("b", new)))
    for line in unified_diff(before or [], after or [], fromfile, tofile):
        yield line if line.endswith("\n") else f"{line}\n"


def code_diff(first: CodeSnapshot | None, second: CodeSnapshot | None) -> CodeDiff:
    """From the first to the second."""
    if first is None or second is None:
        return CodeDiff("", "the code of one of them is not recorded")
    shas = (first.git_sha, second.git_sha)
    if shas[0] is None or shas[1] is None:
        return CodeDiff("", "no diff: one of them was not launched from a git repository")
    if (first.git_sha, first.diff) == (second.git_sha, second.diff):
        return CodeDiff("", _untracked(first, second))
    repository = next(_repositories(first, second), None)
    if repository is None:
        return CodeDiff("", f"no diff: no repository here has both {shas[0][:7]} and {shas[1][:7]}")
    with tempfile.TemporaryDirectory() as folder:
        return _between(repository, Path(folder), first, second)


def _repositories(first: CodeSnapshot, second: CodeSnapshot) -> Iterator[Path]:
    """The top folders of repositories that have both commits."""
    for folder in dict.fromkeys([first.folder, second.folder, str(Path.cwd())]):
        top = run_git(Path(folder), "rev-parse", "--show-toplevel")
        if top is None:
            continue
        path = Path(top.decode().strip())
        if all(run_git(path, "cat-file", "-e", f"{one.git_sha}^{{commit}}") is not None for one in (first, second)):
            yield path


def _between(repository: Path, scratch: Path, first: CodeSnapshot, second: CodeSnapshot) -> CodeDiff:
    objects = run_git(repository, "rev-parse", "--path-format=absolute", "--git-path", "objects")
    if objects is None:
        return CodeDiff("", f"no diff: git in {repository} does not answer")
    (scratch / "objects").mkdir()
    env = {
        "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects.decode().strip(),
        "GIT_INDEX_FILE": str(scratch / "index"),
    }
    trees = [_tree(repository, code, env) for code in (first, second)]
    notes = [note for _, note in trees if note]
    if note := _untracked(first, second):
        notes.append(note)
    quiet = ("--no-color", "--no-ext-diff", "--no-textconv")
    raw = run_git(repository, "diff", *quiet, trees[0][0], trees[1][0], env=env)
    if raw is None:
        return CodeDiff("", f"no diff: git in {repository} does not answer")
    if len(raw) > MAX_DIFF_BYTES:
        notes.append(f"the diff is cut at {MAX_DIFF_BYTES:,} bytes of {len(raw):,}")
    return CodeDiff(redact(raw[:MAX_DIFF_BYTES].decode(errors="replace")), "; ".join(notes))


def _tree(repository: Path, code: CodeSnapshot, env: dict[str, str]) -> tuple[str, str]:
    """A tree of a commit and the changes on it; or of the commit alone, and a note."""
    commit = str(code.git_sha)
    if not code.diff:
        return commit, ""
    changed = f"the uncommitted changes on {commit[:7]} are left out: "
    if code.diff_cut:
        return commit, f"{changed}they were too long to be recorded"
    applied = run_git(repository, "read-tree", commit, env=env)
    if applied is not None:
        applied = run_git(
            repository, "apply", "--cached", "--whitespace=nowarn", "-", env=env, stdin=code.diff.encode()
        )
    tree = run_git(repository, "write-tree", env=env) if applied is not None else None
    return (commit, f"{changed}they cannot be applied") if tree is None else (tree.decode().strip(), "")


def _untracked(*codes: CodeSnapshot) -> str:
    """A note on files that are recorded by their names alone."""
    names = {
        name for code in codes for name in code.changed_files if f" b/{name}" not in code.diff and not code.diff_cut
    }
    return f"not tracked, and not compared: {', '.join(sorted(names))}" if names else ""
