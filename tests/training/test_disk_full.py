"""Disks that are full: of the run's directory, of the cache of chunks. Said; and nothing is lost once there is room."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launchyard.errors import UserError, os_error_text
from launchyard.host.processes import marked
from launchyard.launcher.backends.local import backend
from launchyard.launcher.runs.checkpoints import list_saved
from launchyard.run.append import Appender
from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import parse_lines
from launchyard.training.data.prepare.prepare import prepare
from launchyard.training.spec import Storage
from tests.s3.runs import Origin, make_origin, write_data, write_plan
from tests.support.ranks import ForkedProcess
from tests.support.small_runs import final_weights, history, run_workers, start_workers
from tests.support.standin import PlannedHere


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    return make_origin(tmp_path_factory.mktemp("origin"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """To the last byte."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return filler


def copy(origin: Origin, disk: Path) -> RunDir:
    return RunDir(str(shutil.copytree(origin.begun.url, disk / "run")))


def is_exact(run: RunDir, origin: Origin) -> None:
    assert history(run) == origin.rows
    weights = final_weights(run)
    assert all(bool((weights[key] == tensor).all()) for key, tensor in origin.weights.items())
    assert not any(saved.faults for saved in list_saved(run, verify_all=True))


def start_on_a_full_disk(run: RunDir, disk: Path) -> tuple[ForkedProcess, Path]:
    """The attempt is claimed; before its worker has written a thing there is no room any more."""
    (process,) = start_workers(run, 1)
    return process, fill(disk)


def ended(process: ForkedProcess) -> int:
    try:
        return process.wait(120)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_training_goes_on_until_there_is_room(origin: Origin, small_disk: Path) -> None:
    """Saves fail and are said, rows wait; the first save after that has all of it."""
    run = copy(origin, small_disk)
    checkpoints = small_disk / "run/checkpoints"
    there = len(list(checkpoints.iterdir()))
    process, filler = start_on_a_full_disk(run, small_disk)
    while process.poll() is None and len(list(checkpoints.iterdir())) < there + 2:
        time.sleep(0.001)
    filler.unlink()  # a save has failed, and the next one begins
    assert ended(process) == 0
    failed = [event for event in run.events(run.attempts()[-1]) if event["event"] == "save failed"]
    assert failed and "No space left" in failed[0]["message"]
    is_exact(run, origin)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=12), st.integers(0, 3))
def test_rows_are_whole_on_a_disk_that_fills_up(small_disk: Path, lengths: list[int], pages: int) -> None:
    """However much of a line found room before: no half of one stays, none is lost, none comes twice."""
    run, filler = RunDir(str(small_disk / "rows")), fill(small_disk)
    rows = Appender(run, "metrics/steps-0000")
    with open(filler, "r+b") as file:
        file.truncate(filler.stat().st_size - pages * 4096)
    for number, length in enumerate(lengths):
        rows.add({"step": number, "text": "x" * length})
    filler.unlink()
    rows.flush(sync=True)
    found = parse_lines(run.read_bytes("metrics/steps-0000.jsonl"), lambda row: True)[0]
    shutil.rmtree(small_disk / "rows")
    assert [(row["step"], len(row["text"])) for row in found] == list(enumerate(lengths))


def test_without_room_it_ends_and_goes_on_later(origin: Origin, small_disk: Path) -> None:
    run = copy(origin, small_disk)
    before = committed_steps(run)
    process, filler = start_on_a_full_disk(run, small_disk)
    assert ended(process) == 1
    assert committed_steps(run) == before and run.outcome(run.attempts()[-1]) is None
    filler.unlink()
    run_workers(run, 1)
    is_exact(run, origin)


def test_a_launch_on_a_full_disk_is_told(origin: Origin, small_disk: Path) -> None:
    run = copy(origin, small_disk)
    job = run.read_json("attempts/0000/job.json")  # its owner is gone, and that can be told
    run.write_json("attempts/0000/job.json", {**job, "host": socket.gethostname()})
    (small_disk / "run/job.log").touch()
    fill(small_disk)
    with pytest.raises(UserError, match="No space left"):
        backend.submit(run, PlannedHere(), {})
    assert run.attempts() == [0] and not marked(run.url)


def test_text_that_finds_no_room_names_the_place(small_disk: Path, novel: str, tokenizer_file: str) -> None:
    text = small_disk.parent / "novel.txt"
    text.write_text(novel[:200_000])
    out = small_disk / "tokens"
    fill(small_disk)
    (small_disk / "filler").write_bytes(b"x" * ((4 << 20) - (64 << 10)))  # room for the folders
    with pytest.raises(OSError, match="No space left") as caught:
        prepare([str(text)], tokenizer=tokenizer_file, out=str(out))
    assert str(caught.value.filename).startswith(str(out))
    assert os_error_text(caught.value).endswith(": no space left on device")


def test_a_cache_on_a_full_disk(origin: Origin, small_disk: Path, tmp_path: Path) -> None:
    """Chunks are held in memory instead, which is said once with what to do."""
    run = RunDir(str(shutil.copytree(origin.begun.url, tmp_path / "run")))
    data = write_data(str(tmp_path / "data"))
    far = tuple(one.model_copy(update={"folder": f"local://{one.folder}"}) for one in data.train)
    write_plan(run, data.model_copy(update={"train": far}), Storage(cache=str(small_disk / "cache")))
    (small_disk / "cache").mkdir()
    fill(small_disk)
    run_workers(run, 1)
    is_exact(run, origin)
    told = [event["message"] for event in run.events(run.attempts()[-1]) if event["event"] == "data trouble"]
    (said,) = (text for text in told if "cannot be used" in text)
    assert "held in memory" in said and "Free some space" in said
