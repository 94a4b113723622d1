"""The code that a run runs is the recorded one: not what lies where it was typed, and not what a checkout became."""

from __future__ import annotations

import ast
import errno
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchyard.errors import NothingRunsError
from launchyard.host.folders import user_cache_folder
from launchyard.host.processes import descendants, end_all, end_marked, python_environment
from launchyard.launcher.backends import code
from launchyard.launcher.backends.code import keep_code
from launchyard.launcher.backends.local import backend, owner
from launchyard.launcher.submit.code import CodeSnapshot, record_again, take_snapshot
from launchyard.run import own_code
from launchyard.run.own_code import ROOT, digest, what_differs
from launchyard.run.rundir import RunDir
from tests.support.shell import SHADOWS, Shell, cast_shadows, clone_code, edit_worker
from tests.support.small_runs import MODEL, write_data
from tests.support.standin import PlannedHere, Standin, make_run
from tests.test_journey import wait_until

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": MODEL,
    "data": {"source": "tokens/train", "seq_len": 16},
    "train": {"max_steps": 3, "global_batch_size": 8, "device": "cpu"},
    "metrics": {"prometheus": False},
    "resources": {"nproc_per_node": 1},
}


class Place(Shell):
    """A person's folder with a recipe, and one run."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        write_data(self.here / "tokens", 4000)
        (self.here / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
        self.run = RunDir(str(self.here / "runs/one"))

    def ok(self, *words: str) -> str:
        done = self(*words, timeout=120)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.log(0)}"
        return done.stdout

    def log(self, attempt: int) -> str:
        """All that was printed in an attempt, and by the owner."""
        found = [Path(self.run.path("job.log")), *Path(self.run.url).glob(f"attempts/{attempt:04d}/logs/*")]
        return "\n".join(path.read_text() for path in found if path.exists())

    def step(self, attempt: int) -> int:
        return max((row["step"] for row in self.run.rows("steps") if row["attempt"] == attempt), default=0)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    if made.run.attempts():
        end_all(descendants(made.run.job(0).pid))  # the owner, which has no mark
    end_marked(made.run.url)


def test_files_of_the_working_directory_do_not_matter(place: Place) -> None:
    """Each of these names would end the first process that imports it."""
    cast_shadows(place.here)
    place.ok("tiny.yaml", "--run-url", "runs/one", "--follow")
    record = place.run.outcome()
    assert record is not None and record.outcome == "completed"
    assert not [name for name in SHADOWS if name in place.log(0)]


@pytest.mark.slow
def test_an_edited_checkout_changes_no_run_that_was_submitted(place: Place, tmp_path: Path) -> None:
    """Not its next attempt; a resume runs the new code, and says and records it."""
    clone = clone_code(tmp_path / "clone")
    place.env["PYTHONPATH"] = str(clone)
    place.ok("tiny.yaml", "--run-url", "runs/one", "--detach", "train.max_steps=1000000")
    first = place.run.read_json("code.json")
    wait_until(lambda: place.step(0) > 2)
    edit_worker(clone, "EDITED")
    job = place.run.job(0)
    backend.notify(place.run, job)
    wait_until(lambda: place.step(1) > place.step(0))
    assert "EDITED" not in place.log(1), "the next attempt runs the code of the first"
    assert place.run.read_json("code.json") == first
    place.ok("stop", "runs/one")
    steps = place.step(1) + 5
    said = place.ok("resume", "runs/one", "--follow", f"train.max_steps={steps}")
    assert "EDITED" in place.log(2)
    assert "! code" in said and first["source"] in said and digest(clone) in said
    now = CodeSnapshot.model_validate(place.run.read_json("code.json"))
    assert now.source == digest(clone)
    assert [(earlier.source, earlier.attempts) for earlier in now.earlier] == [(first["source"], 2)]


def test_an_owner_that_dies_at_once_is_told_and_leaves_nothing(place: Place) -> None:
    """Whatever kills it: a broken installation, a full machine."""
    site = place.root / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'launchyard.launcher.backends.local.owner' in sys.orig_argv:\n"
        "    os.write(2, b'first line\\nthis machine is broken\\n')\n"
        "    os._exit(3)\n"
    )
    path = os.pathsep.join([str(site), str(ROOT)])
    done = place("tiny.yaml", "--run-url", "runs/one", PYTHONPATH=path)
    assert done.returncode == 1, done.stderr
    assert "exit code 3" in done.stderr and "this machine is broken" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place.here / "runs").exists()
    assert "tiny-" not in place.ok("status"), "it is not registered"


def test_an_owner_that_dies_with_the_request_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end of the line is reset then, and not closed."""
    run = make_run(tmp_path)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 0.5\necho no luck >&2\nexit 9\n")
    python.chmod(0o700)
    monkeypatch.setattr(owner.sys, "executable", str(python))
    with pytest.raises(NothingRunsError, match=r"exit code 9(?s:.)*no luck"):
        backend.submit(run, PlannedHere(), {"a": "b" * 100_000})
    assert not os.path.exists(run.path("code")) and run.attempts() == []


# -- what was recorded -----------------------------------------------------------------------------------------------
def test_an_owner_of_other_code_ends_the_run(standin: Standin) -> None:
    standin.run.write_json("code.json", {"launchyard": "9.9", "source": "0" * 16})
    standin.submit(steps=5)
    record = standin.outcome()
    assert (record.outcome, record.reason, record.fatal) == ("failed", "other code", True)
    assert "9.9" in record.message and digest() in record.message
    assert standin.run.attempts() == [0]
    standin.nothing_left()


def test_only_a_recorded_digest_is_compared(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert what_differs(run) is None, "started by hand: no code.json"
    run.write_json("code.json", {"launchyard": "0.0.1"})
    assert what_differs(run) is None, "a run from before digests were recorded"
    run.write_json("code.json", take_snapshot(tmp_path).model_dump())
    assert what_differs(run) is None
    run.write_json("code.json", {"launchyard": "9.9", "source": "0" * 16})
    said = what_differs(run) or ""
    assert all(word in said for word in (str(ROOT), digest(), "9.9", "0" * 16, "launch resume"))


def test_a_digest_is_of_the_code_and_of_nothing_else(tmp_path: Path) -> None:
    clone = clone_code(tmp_path / "a")
    assert digest(clone) == digest()
    shutil.rmtree(clone / "launchyard/launcher/__pycache__", ignore_errors=True)
    os.utime(clone / "launchyard/launcher/agent/node.py", (1, 1))
    assert digest(clone) == digest()
    (clone / "launchyard/clusters/local.yaml").write_text("name: local\n")
    assert digest(clone) != digest()


def test_the_copy_is_the_code(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    folder = keep_code(run)
    assert folder is not None and digest(folder) == digest()
    kept = folder.stat().st_ino
    assert keep_code(run) == folder and folder.stat().st_ino == kept, "equal code is not copied again"
    (folder / "launchyard/launcher/agent/node.py").write_text("an old version")
    assert keep_code(run) == folder and digest(folder) == digest()
    assert not [path for path in folder.parent.iterdir() if path.name.startswith("code.") and path.is_dir()]


def test_runs_of_the_same_code_share_its_files_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = keep_code(RunDir(str(tmp_path / "1"))), keep_code(RunDir(str(tmp_path / "2")))
    assert one is not None and two is not None
    names = [name for name, _ in own_code.own_files(one)]
    assert names == [name for name, _ in own_code.own_files()] == [name for name, _ in own_code.own_files(two)]
    assert all((one / name).samefile(two / name) for name in names)
    shutil.rmtree(one)
    assert digest(two) == digest()

    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source)

    monkeypatch.setattr(os, "link", refuse)
    three = keep_code(RunDir(str(tmp_path / "3")))
    assert three is not None and digest(three) == digest()
    assert not (three / names[0]).samefile(two / names[0])


def test_code_that_others_may_change_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = keep_code(RunDir(str(tmp_path / "1")))
    kept = user_cache_folder(code.KEPT_CODE)
    kept.chmod(0o777)
    two = keep_code(RunDir(str(tmp_path / "2")))
    assert one is not None and two is not None and digest(two) == digest()
    name, _ = next(own_code.own_files(one))
    assert not (one / name).samefile(two / name)


def test_few_copies_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(code, "KEPT_COPIES", 2)
    states = [f"{number:016x}" for number in range(3)]
    folders = []
    for number, state in enumerate(states):
        monkeypatch.setattr(code, "_state_of_code", partial(str, state))
        folders.append(keep_code(RunDir(str(tmp_path / str(number)))))
        os.utime(user_cache_folder(code.KEPT_CODE, state), (number, number))
    assert {path.name for path in user_cache_folder(code.KEPT_CODE).iterdir()} == set(states[-code.KEPT_COPIES :])
    assert folders[0] is not None and digest(folders[0]) == digest(), "a run keeps what it has"


def test_an_installed_package_leaves_no_older_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    folder = keep_code(run)
    monkeypatch.setattr(own_code, "is_installed", lambda: True)
    assert keep_code(run) is None
    assert folder is not None and not folder.exists()


def test_recording_again_keeps_what_others_wrote(tmp_path: Path) -> None:
    run, code = make_run(tmp_path), take_snapshot(tmp_path)
    assert record_again(run, code) is None, "nothing was recorded before"
    assert record_again(run, code) is None
    assert run.read_json("code.json")["earlier"] == []
    for number in range(3):
        said = record_again(run, code.model_copy(update={"source": f"{number}", "launchyard_sha": f"{number}" * 40}))
        assert said is not None and f"({number})" in said
    assert [earlier["source"] for earlier in run.read_json("code.json")["earlier"]] == [code.source, "0", "1"]


# -- how processes are started ---------------------------------------------------------------------------------------
def test_the_code_comes_first_and_the_working_directory_not_at_all() -> None:
    given = {"PYTHONPATH": os.pathsep.join(["", "/theirs", "/code", ""]), "A": "b"}
    found = python_environment(given, code="/code")
    assert found == {"A": "b", "PYTHONPATH": os.pathsep.join(["/code", "/theirs"]), "PYTHONSAFEPATH": "1"}
    assert "PYTHONPATH" not in python_environment({}, code=None)


PRODUCT = [Path(path) for name, path in own_code.own_files() if name.endswith(".py") and "/dashboards/" not in name]
STARTED_BY_TORCHRUN = '[inside, "-u", "-m", WORKER, ask.run_url]'  # which gets PYTHONSAFEPATH


def test_every_interpreter_is_started_by_python_argv() -> None:
    """A list with `-m` or an interpreter in it is a command line; it begins with the words of host/processes.py."""
    wrong = []
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.List | ast.Tuple) or len(node.elts) < 2:
                continue
            words = [ast.unparse(element) for element in node.elts]
            starts = ("'-m'" in words[1:] or "sys.executable" in words) and "'-I'" not in words
            named = any(word.startswith(("*python_argv(", "*agent_python(")) for word in words)  # which calls it
            passed_on = words == ["sys.executable", "*argv"] and path.name == "node_actor.py"  # the plan's own words
            if (
                starts
                and not named
                and not passed_on
                and f"[{', '.join(words)}]" != STARTED_BY_TORCHRUN.replace('"', "'")
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {words}")
    assert not wrong, wrong
