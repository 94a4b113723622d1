"""Commands in odd surroundings: closed streams, a home that cannot be written to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launchyard.errors import RecipeErrors, UserError, user_errors
from launchyard.host.folders import folder_advice, user_cache_folder, user_state_folder
from launchyard.host.processes import python_argv
from launchyard.launcher.cli.main import main
from launchyard.launcher.cli.weights.prompt_rows import read_prompt_rows
from launchyard.launcher.doctor.doctor import user_folder_findings
from launchyard.launcher.sweep.points import read_points


@pytest.mark.parametrize(
    ("closed", "command", "code"),
    [(">&-", "status", 0), (">&- 2>&- <&-", "status", 0), ("2>&-", "no-such-recipe", 2), ("<&-", "- --dry-run", 2)],
)
def test_a_caller_may_have_closed_the_streams(closed: str, command: str, code: int) -> None:
    launch = f'"{sys.executable}" {" ".join(python_argv(sys.executable)[1:])} -m launchyard {command} {closed}'
    done = subprocess.run(["bash", "-c", launch], capture_output=True, text=True, check=False)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file where the home of the user should be: nothing can be written there, by root neither."""
    place = tmp_path / "home"
    place.touch()
    for kind in ("STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(place / kind))
    return place


def test_a_home_that_cannot_be_written_to_has_a_cure(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught, user_errors():
        raise PermissionError(13, "Permission denied", str(user_cache_folder("data", "x.lock")))
    assert caught.value.hint == "set XDG_CACHE_HOME to a folder that can be written"
    with pytest.raises(SystemExit) as end:
        main(["sandbox", "up", "s3"])
    error = capsys.readouterr().err
    assert end.value.code == 1 and "Errno" not in error
    assert "not a directory" in error and "set XDG_STATE_HOME" in error


def test_only_the_users_own_folders_are_moved_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "made" / "state"))
    assert "XDG_STATE_HOME" in str(folder_advice(tmp_path / "made"))  # it could not be made
    assert "XDG_STATE_HOME" in str(folder_advice(user_state_folder("runs", "x.json")))
    os.makedirs(tmp_path / "made")
    assert folder_advice(tmp_path / "made") is None
    assert folder_advice(tmp_path / "other") is None and folder_advice("made") is None and folder_advice(None) is None


def test_doctor_tries_the_folders_that_a_launch_needs(home: Path) -> None:
    found = list(user_folder_findings())
    assert [(finding.level, finding.what) for finding in found] == [("error", "your folders")] * 2
    assert str(home) in found[0].found and "XDG_STATE_HOME" in found[0].fix
    home.unlink()
    assert not list(user_folder_findings()) and not home.exists()


BYTES = "caf\udce9"  # as Python has a word of the command line in Latin-1


@pytest.mark.parametrize(
    "words",
    [
        [BYTES],
        ["quickstart", f"data.source={BYTES}"],
        ["quickstart", "--name", BYTES],
        ["generate", "x", "--prompt", BYTES],
    ],
)
def test_a_word_that_is_not_utf8_is_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and "caf?: this is not UTF-8" in capsys.readouterr().err


def test_no_run_is_made_in_a_folder_whose_name_is_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkdir(tmp_path / BYTES)
    monkeypatch.chdir(tmp_path / BYTES)
    with pytest.raises(SystemExit) as end:
        main(["quickstart"])
    assert end.value.code == 2 and "caf?/runs/quickstart-" in capsys.readouterr().err
    assert not os.listdir(".")


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "latin.jsonl"
    file.write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"latin\.jsonl:1 is not UTF-8"):
        read_prompt_rows(str(file), {})
    file.write_text('{"prompt": "whole"}\n{"prompt": "half a pair: \\ud83d"}\n')
    with pytest.raises(RecipeErrors, match=r"latin\.jsonl:2: the text is not Unicode at character 14"):
        read_prompt_rows(str(file), {})
    rows = tmp_path / "points.csv"
    rows.write_bytes(b"optimizer.lr\n\xe9\n")
    with pytest.raises(UserError, match=r"points\.csv: not UTF-8 text \(byte 13\)"):
        read_points(str(rows))
