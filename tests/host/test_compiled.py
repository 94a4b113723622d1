"""Compiled code is kept where only its user writes, and where he says."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from launchyard.host.compiled import COMPILED_FOLDER, keep_compiled_code
from launchyard.host.environment import variable


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(COMPILED_FOLDER, "")  # and given back at the end
    monkeypatch.delenv(COMPILED_FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "launchyard" / "compiled"


def test_it_lies_in_the_users_cache_and_is_his_alone(cache: Path) -> None:
    assert keep_compiled_code() == variable(COMPILED_FOLDER) == str(cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_a_folder_that_the_user_names_is_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMPILED_FOLDER, "/scratch/mine")
    assert keep_compiled_code() == "/scratch/mine"
    assert not cache.exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_to_which_others_may_write_is_refused(cache: Path, mode: int) -> None:
    cache.mkdir(parents=True)
    cache.chmod(mode)
    with pytest.raises(ValueError, match=r"others may write to it.*chmod 700"):
        keep_compiled_code()
    assert variable(COMPILED_FOLDER) is None


def test_a_cache_that_cannot_be_made_is_named(cache: Path) -> None:
    cache.parent.write_text("a file")
    with pytest.raises(ValueError, match=f"compiled: .*set {COMPILED_FOLDER}"):
        keep_compiled_code()
