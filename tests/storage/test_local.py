"""Atomic local writes: old bytes or new, nothing left beside them, the mode that was asked for."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launchyard.storage import local
from launchyard.storage.redact import redact, without_credentials


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "new" / "file"
    for raw in (b"old", b"", b"x" * 100_000):
        local.replace_file(path, raw, sync=sync)
        assert path.read_bytes() == raw
    assert os.listdir(path.parent) == ["file"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    local.replace_file(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match=f"No space left on device: '{path}'"):  # which the system does not name
            local.replace_file(path, b"new", sync=True)
        with pytest.raises(OSError, match=r"No space left on device: .*other"):
            local.create_file(tmp_path / "other", b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_private_file_was_never_public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, modes, real = tmp_path / "file", [], os.replace

    def look(source: str, target: Path) -> None:
        modes.append(os.stat(source).st_mode & 0o777)
        real(source, target)

    monkeypatch.setattr(os, "replace", look)
    before = os.umask(0o022)
    try:
        local.replace_file(path, b"public")
        local.replace_file(path, b"secret", mode=0o600)
    finally:
        os.umask(before)
    assert modes == [0o644, 0o600] and path.stat().st_mode & 0o777 == 0o600


def test_what_exists_is_not_created(tmp_path: Path) -> None:
    local.create_file(tmp_path / "file", b"first")
    with pytest.raises(FileExistsError):
        local.create_file(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first" and os.listdir(tmp_path) == ["file"]


def test_a_file_system_without_hard_links_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", source, None, str(target))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(PermissionError, match=r"hard links: '.*/claim'"):
        local.create_file(tmp_path / "claim", b"ours")
    assert not list(tmp_path.iterdir())


def test_a_request_that_nfs_repeats_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first answer was lost, and the second says what the first has done: the claim of an attempt is ours."""

    def twice(action: Callable[[str, Path], None]) -> Callable[[str, Path], None]:
        def repeated(source: str, target: Path) -> None:
            action(source, target)
            action(source, target)

        return repeated

    local.create_file(tmp_path / "taken", b"theirs")
    monkeypatch.setattr(os, "link", twice(os.link))
    monkeypatch.setattr(os, "replace", twice(os.replace))
    local.create_file(tmp_path / "claim", b"ours")
    local.replace_file(tmp_path / "record", b"ours")
    with pytest.raises(FileExistsError):
        local.create_file(tmp_path / "taken", b"ours")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "claim": b"ours", "record": b"ours", "taken": b"theirs",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://user:pass@host/a.txt", "https://host/a.txt"),
        ("s3://bucket/a@b.jsonl", "s3://bucket/a@b.jsonl"),
        ("/data/a@b.txt", "/data/a@b.txt"),
        ("https://host/a.txt?x=1&X-Amz-Signature=abc", "https://host/a.txt?x=1&X-Amz-Signature=***"),
    ],
)
def test_the_name_of_a_url_holds_no_secret_and_stays(url: str, name: str) -> None:
    assert without_credentials(url) == name
    assert without_credentials(name) == name == redact(name)
