"""Which code ran: right in a repository, outside of one and without git; and never a password."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launchyard.launcher.submit.code import MAX_DIFF_BYTES, take_snapshot
from launchyard.storage.redact import redact


def git(folder: Path, *args: str) -> str:
    words = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *args]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "work")
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_text("a file that is moved\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_clean_repository(repository: Path) -> None:
    code = take_snapshot(repository)
    assert (code.git_sha, code.git_branch) == (git(repository, "rev-parse", "HEAD"), "work")
    assert (code.dirty, code.diff) == (False, "")
    assert code.launchyard_sha != code.git_sha, "that is the checkout of launchyard, if it runs from one"
    assert code.summary().startswith(f"{code.git_sha[:7]} · ")


def test_what_is_not_committed(repository: Path) -> None:
    (repository / "? odd").write_text("looks like an entry of its own\n" * 9)
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "second")
    (repository / "a.txt").write_text("one\ntwo\n")
    git(repository, "mv", "b.txt", "with space.txt")
    git(repository, "mv", "? odd", "even")
    (repository / "new.txt").write_text("new")
    code = take_snapshot(repository)
    assert sorted(code.changed_files) == ["a.txt", "even", "new.txt", "with space.txt"]
    assert "+two" in code.diff
    assert "4 changed files" in code.summary()
    before = git(repository, "rev-parse", "HEAD"), (repository / ".git/index").read_bytes()
    take_snapshot(repository)
    assert before == (git(repository, "rev-parse", "HEAD"), (repository / ".git/index").read_bytes())


def test_a_huge_diff_is_cut(repository: Path) -> None:
    (repository / "a.txt").write_text("line\n" * MAX_DIFF_BYTES)
    code = take_snapshot(repository)
    assert code.diff_cut
    assert len(code.diff) <= MAX_DIFF_BYTES


def test_before_the_first_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert take_snapshot(tmp_path).git_sha is None


def test_a_launch_from_a_hook_of_another_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = git(repository, "rev-parse", "HEAD")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    code = take_snapshot(repository)
    assert (code.git_sha, code.dirty) == (head, False)


def test_outside_a_repository_and_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = take_snapshot(tmp_path)
    assert code.git_sha is None
    assert "not in a git repository" in code.summary()
    assert code.packages["pydantic"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert take_snapshot(tmp_path).git_sha is None


def test_passwords_stay_out(repository: Path) -> None:
    git(repository, "remote", "add", "origin", "https://me:s3cret@host/repo.git")
    (repository / "a.txt").write_text("url: s3://key:s3cret@bucket/x\n")
    text = take_snapshot(repository).model_dump_json()
    assert "s3cret" not in text
    assert "https://***@host/repo.git" in text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("s3://bucket/path", "s3://bucket/path"),
        ("https://u:p@h/x and ftp://t@h", "https://***@h/x and ftp://***@h"),
        ("https://h/x?X-Amz-Signature=abc&a=b", "https://h/x?X-Amz-Signature=***&a=b"),
        ("git@host:me/repo", "git@host:me/repo"),
        ("a.yaml?token=x", "a.yaml?token=***"),
    ],
)
def test_redact(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert redact(clean) == clean
