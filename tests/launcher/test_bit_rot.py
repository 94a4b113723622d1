"""Every file of a run × every kind of damage × every command that reads it: no traceback, and no silent difference."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launchyard.errors import LaunchError
from launchyard.launcher.cli.main import main
from launchyard.launcher.submit.move import OF_PLACE
from launchyard.launcher.submit.resume import make_ready
from launchyard.run.rundir import RunDir
from launchyard.storage import damage
from launchyard.storage.errors import DamagedError
from tests.run.test_old_runs import FIXTURE, LONG_AGO, PLACE

FILES = (
    "recipe.yaml",
    "plan.json",
    "code.json",
    "data.json",
    "place.json",
    "outcome.json",
    "attempts/0000/job.json",
    "attempts/0000/outcome.json",
    "attempts/0000/heartbeat.json",
    "attempts/0000/events.jsonl",
    "metrics/steps-0000.jsonl",
    "metrics/validation-0000.jsonl",
    "checkpoints/latest.json",
    "checkpoints/step-00000015/manifest.json",
    "checkpoints/step-00000015/0000-rank-00000.safetensors",
)
COMMANDS = (
    ("status", "./run"),
    ("why", "./run"),
    ("metrics", "./run", "--jsonl"),
    ("logs", "./run"),
    ("checkpoints", "./run", "--verify"),
    ("fsck", "./run"),
)


# Files that somebody may be about to write on: a shorter one is no damage that can be seen.
GROWING = ("metrics/steps-0000.jsonl", "metrics/validation-0000.jsonl", "attempts/0000/events.jsonl")


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 128
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "NUL": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "missing": Path.unlink,
    "folder": replace_by_folder,
    "unreadable": lambda path: path.chmod(0),
}
# Files that need not be there: nothing tells that they were.
OPTIONAL = (
    *("outcome.json", "attempts/0000/outcome.json", "attempts/0000/heartbeat.json", "checkpoints/latest.json"),
    *("data.json", "place.json"),
)


CAPABILITIES_3 = 0x20080522
OVERRIDES = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@pytest.fixture(autouse=True)
def no_override() -> Iterator[None]:
    """This thread is held to the rights of files: root could read one of mode 000 otherwise."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root reads everything here")
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0)  # of this thread
    before = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    fewer = (ctypes.c_uint32 * 6)(before[0] & ~OVERRIDES, *before[1:])
    assert libc.capset(header, fewer) == 0
    yield
    libc.capset(header, before)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("rot") / "intact"
    shutil.copytree(FIXTURE, here)
    for path in here.rglob("*"):
        if path.suffix in (".json", ".yaml") and path.name != "manifest.json":
            path.write_text(path.read_text().replace(PLACE, str(here)))
    plan = json.loads((here / "run/plan.json").read_text())  # of a run that was moved and moved back
    (here / "run/data.json").write_text(json.dumps(plan["data"]))
    (here / "run/place.json").write_text(json.dumps({key: plan.get(key) for key in OF_PLACE}))
    return here


def answer(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, *words: str) -> tuple[int, str, str]:
    """Exit code, output without ages, which grow between two commands, and all that was reported of damage."""
    caplog.clear()
    damage._reported.clear()
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    printed = capsys.readouterr()
    output = re.sub(r" +", " ", re.sub(r"\b\d+[dhms](?: \d+[hms])?\b", "AGE", printed.out))
    return int(ended.value.code or 0), output, printed.err + caplog.text


def age() -> None:
    """Its lease has run out: whoever made it on another machine has left it."""
    for path in Path("run").glob("attempts/*/*.json"):
        os.utime(path, (LONG_AGO, LONG_AGO))


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named(
    intact: Path,
    tmp_path: Path,
    name: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    shutil.copytree(intact, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    age()
    before = [answer(capsys, caplog, *words) for words in COMMANDS]
    DAMAGE[kind](Path("run") / name)
    age()
    for words, (_, wanted, _) in zip(COMMANDS, before, strict=True):
        code, printed, said = answer(capsys, caplog, *words)
        assert code in (0, 1, 2), words
        if printed != wanted and kind != "missing" and not (kind in ("cut", "empty") and name in GROWING):
            shown = printed + said
            assert Path(name).name in shown or "damaged" in shown, (words, printed, said)
    assert (code != 0) != (kind == "missing" and name in OPTIONAL), printed  # of fsck


FROZEN = ("recipe.yaml", "plan.json")
MOVED = ("data.json", "place.json")


@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind != "missing"])
@pytest.mark.parametrize("name", [name for name in FILES if name not in (*FROZEN, *MOVED)])
def test_a_resume_gets_around_it(
    intact: Path, tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a damaged job.json also in the first minute after the end: its heartbeat could be an owner's elsewhere."""
    shutil.copytree(intact, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    DAMAGE[kind](Path("run") / name)
    if not name.endswith("job.json"):
        age()
    ready = make_ready(RunDir("run"), {"train.max_steps": 41})
    assert ready.state.checkpoint == 15  # one that is damaged is found when it is loaded
    assert ready.overrides == {"train.max_steps": 41}


@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind not in ("missing", "folder", "unreadable")])
def test_a_damaged_record_of_a_move(intact: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No attempt goes to another place or to other tokens in silence; naming the place again is enough."""
    shutil.copytree(intact, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    source = str(intact / "data")
    again: dict[str, tuple[dict[str, object], str | None]] = {
        "data.json": ({"data.source": source}, None),
        "place.json": ({}, "local"),
    }
    age()
    for name, (changes, cluster) in again.items():
        kept = (Path("run") / name).read_bytes()
        DAMAGE[kind](Path("run") / name)
        with pytest.raises((LaunchError, DamagedError), match=name):
            make_ready(RunDir("run"), {"train.max_steps": 41})
        assert make_ready(RunDir("run"), {"train.max_steps": 41, **changes}, cluster=cluster).plan.cluster == "local"
        (Path("run") / name).write_bytes(kept)


def test_plan_and_claim_damaged_at_once(
    intact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing tells any more where the run was submitted: the error is that of the plan."""
    shutil.copytree(intact, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for name in ("plan.json", "attempts/0000/job.json"):
        flip(Path("run") / name)
    code, _, said = answer(capsys, caplog, "status", "./run")
    assert code == 1 and "error: " in said
    assert "plan.json is damaged" in said.partition("error: ")[2]
