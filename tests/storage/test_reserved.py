"""A file whose size is known beforehand: room for it is found at once, and what is written is the same."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from launchyard.host import disk
from launchyard.storage import files, local

BYTES = os.urandom(3 * local._WRITE_BYTES + 17)


@pytest.mark.parametrize("told", [None, 0, 5, len(BYTES), 2 * len(BYTES)])
@pytest.mark.parametrize("step", [1 << 20, len(BYTES)])
def test_the_bytes_are_the_same_whatever_is_told(tmp_path: Path, told: int | None, step: int) -> None:
    file = files.open_write(f"{tmp_path}/file", size=told)
    for start in range(0, len(BYTES), step):
        file.write(memoryview(BYTES)[start : start + step])
        assert os.path.getsize(tmp_path / "file") == min(start + step, len(BYTES)), "it is as long as what was written"
    file.close()
    assert (tmp_path / "file").read_bytes() == BYTES


def test_no_room_is_said_before_the_first_byte(tmp_path: Path) -> None:
    if not _reserves(tmp_path):
        pytest.skip("this file system cannot reserve room")
    with pytest.raises(OSError, match="file") as caught:
        files.open_write(f"{tmp_path}/file", size=2 * shutil.disk_usage(tmp_path).total)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == f"{tmp_path}/file"
    assert not os.listdir(tmp_path)


def test_files_are_written_where_the_kernel_takes_no_hints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_call", lambda *_: None)
    file = files.open_write(f"{tmp_path}/file", size=len(BYTES))
    file.write(BYTES)
    file.close()
    assert (tmp_path / "file").read_bytes() == BYTES


def _reserves(folder: Path) -> bool:
    with open(folder / "probe", "wb") as file:
        disk.reserve(file.fileno(), 1 << 20)
        found = os.fstat(file.fileno()).st_blocks > 0
    os.unlink(folder / "probe")
    return found
