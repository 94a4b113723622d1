"""`launch monitor`: who is to be scraped, when a run vanishes, and that a store which stumbles makes none vanish."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from launchyard.errors import UserError
from launchyard.launcher.cli.main import cli
from launchyard.launcher.monitor import discovery
from launchyard.launcher.monitor.discovery import Discovery, Place, Seen, inspect_run
from launchyard.launcher.monitor.server import Monitor, TargetFile, View, exposition, make_server
from launchyard.launcher.runs.state import RunState
from launchyard.storage import files
from launchyard.storage.errors import StoreError
from launchyard.training.telemetry.metric_table import METRICS
from tests.monitoring.made import Made


@pytest.fixture(autouse=True)
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def live(folder: Path, run_id: str = "tiny-abcd", *ports: int) -> Made:
    made = Made(folder, run_id, clock=time.time() - 60)
    made.begin(alive=True, workers=2)
    made.listen(*(ports or (4001, 4002)))
    made.steps(range(1, 4))
    return made


def targets(seen: Any) -> list[str]:
    return [target for one in seen for group in one.groups for target in group["targets"]]


# -- who is to be scraped --------------------------------------------------------------------------------------------
def test_a_live_run_is_listed_with_its_labels(tmp_path: Path) -> None:
    live(tmp_path)
    (seen,) = Discovery().scan()
    (group,) = seen.groups
    assert group["targets"] == ["127.0.0.1:4001", "127.0.0.1:4002"]
    assert group["labels"] == {
        "cluster": "local", "run_id": "tiny-abcd", "attempt": "0", "node": "node1", "__metrics_path__": "/metrics",
    }  # fmt: skip
    assert seen.workers == 2 and seen.state.state == "running"


@pytest.mark.parametrize(
    "outcome", [("completed", "done"), ("failed", "error"), ("stopped", "stop"), ("stopped", "cancelled")]
)
def test_a_run_that_has_ended_vanishes_and_comes_back_when_it_is_resumed(tmp_path: Path, outcome: Any) -> None:
    made, watching = live(tmp_path), Discovery()
    assert len(targets(watching.scan())) == 2
    made.end(*outcome, 3, of_run=True)
    assert targets(watching.scan()) == [], "its targets are gone though their files were left"
    assert targets(watching.scan()) == []
    made.run.remove("outcome.json")
    made.begin(alive=True, start=3)
    made.listen(4003)
    (seen,) = watching.scan()
    assert targets([seen]) == ["127.0.0.1:4003"] and seen.groups[0]["labels"]["attempt"] == "1"


def test_between_two_attempts_there_is_nobody_to_scrape(tmp_path: Path) -> None:
    made = live(tmp_path)
    made.end("failed", "killed", 3)
    (seen,) = Discovery().scan()
    assert not seen.groups and not seen.workers and seen.ended == {"failed": 1}


def test_a_dead_run_vanishes(tmp_path: Path) -> None:
    made = Made(tmp_path, clock=time.time() - 60)
    made.begin(alive=False)
    made.listen(4001)
    (seen,) = Discovery().scan()
    assert seen.state.state == "lost" and not seen.groups


def test_what_ended_long_ago_is_not_told_of(tmp_path: Path) -> None:
    made = Made(tmp_path, clock=time.time() - 7200)
    made.begin()
    made.end("completed", "done", 3, of_run=True)
    assert Discovery().scan() == []


def test_how_attempts_ended(tmp_path: Path) -> None:
    made = Made(tmp_path, clock=time.time() - 600)
    for outcome, reason in (
        ("stopped", "preempted"),
        ("failed", "killed"),
        ("failed", "non-finite"),
        ("failed", "hung"),
    ):
        made.begin()
        made.end(outcome, reason, 1)
    made.begin()  # left no word
    made.begin(alive=True)
    seen = inspect_run(made.run)
    assert seen is not None
    assert seen.ended == {"preempted": 1, "failed": 1, "nonfinite": 1, "hung": 1, "lost": 1}


def test_work_at_risk_is_since_the_last_save(tmp_path: Path) -> None:
    made = Made(tmp_path, clock=time.time() - 100)
    made.begin(alive=True)
    made.steps(range(1, 101))  # 50 s
    made.save(100)
    made.clock += 30
    made.event("validated", step=100, loss=2.0, seconds=1.0)
    seen = inspect_run(made.run)
    assert seen is not None and seen.quiet is not None
    assert 30 <= seen.quiet.unsaved < 35, "the time between two events of rank 0, and the age of the file with them"


def test_a_queue_is_told(tmp_path: Path) -> None:
    made = Made(tmp_path, clock=time.time())
    made.queue(waited=30.0)
    made.begin(backend="local")
    seen = inspect_run(made.run)
    assert seen is not None and 29 < seen.queue_wait < 31


def test_a_recipe_without_metrics_misses_no_workers(tmp_path: Path) -> None:
    made = live(tmp_path)
    text = made.run.read_text("recipe.yaml")
    made.run.write_text("recipe.yaml", f"{text}metrics: {{prometheus: false}}\n")
    (seen,) = Discovery().scan()
    assert seen.workers == 0


# -- places ----------------------------------------------------------------------------------------------------------
def test_a_folder_of_runs_is_looked_through_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    live(folder, "one-aaaa", 4001, 4002)
    (folder / "notes").mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    watching = Discovery([Place(str(folder))])
    assert [seen.run_id for seen in watching.scan()] == ["one-aaaa"]
    live(folder, "two-bbbb", 4003, 4004)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a-third"))
    assert [seen.run_id for seen in watching.scan()] == ["one-aaaa", "two-bbbb"]


def test_a_run_that_cannot_be_read_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live(tmp_path, "one-aaaa", 4001, 4002)
    live(tmp_path, "two-bbbb", 4003, 4004)
    watching = Discovery()
    before = targets(watching.scan())
    real = discovery.inspect_run

    def stumble(run: Any, tally: Any) -> Any:
        if "one" in run.url:
            raise StoreError("its store does not answer")
        return real(run, tally)

    monkeypatch.setattr(discovery, "inspect_run", stumble)
    assert targets(watching.scan()) == before and watching.errors == 1


def test_a_store_that_is_silent_is_asked_once_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live(tmp_path, "one-aaaa", 4001, 4002)
    live(tmp_path, "two-bbbb", 4003, 4004)
    watching, asked = Discovery(), list[str]()
    before = targets(watching.scan())

    def silent(run: Any, tally: Any) -> Any:
        asked.append(run.url)
        raise StoreError("its store does not answer")

    remote = SimpleNamespace(**{**vars(files), "is_remote": lambda url: True})
    monkeypatch.setattr(discovery, "files", remote)
    monkeypatch.setattr(Place, "store_key", ("s3", "the same"))
    monkeypatch.setattr(discovery, "inspect_run", silent)
    assert targets(watching.scan()) == before and len(asked) == 1
    assert targets(watching.scan()) == before and len(asked) == 2


def test_a_run_whose_directory_is_gone_is_forgotten(tmp_path: Path) -> None:
    import shutil

    made, watching = live(tmp_path), Discovery()
    assert watching.scan()
    shutil.rmtree(made.run.url)
    assert watching.scan() == []


def test_a_place_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        discovery.check_place(Place(str(tmp_path / "nowhere")))


# -- series ----------------------------------------------------------------------------------------------------------
def test_the_series_are_those_of_the_table(tmp_path: Path) -> None:
    live(tmp_path)
    text = exposition(Monitor(Discovery()).refresh())
    families = {family.name: family for family in text_string_to_metric_families(text)}
    known = {metric.name: metric for metric in METRICS if metric.source == "launcher"}
    for name, family in families.items():
        metric = known[name if name in known else f"{name}_total"]
        assert family.type == metric.kind and family.documentation == metric.help
        assert all(set(sample.labels) == set(metric.labels) for sample in family.samples)
    left = known.keys() - families.keys() - {f"{name}_total" for name in families}
    assert left <= {"launcher_run_save_interval_seconds"}, "what depends on the recipe alone"
    (running,) = [one for one in families["launcher_run_state"].samples if one.value == 1]
    assert running.labels["state"] == "running"


@given(st.text(max_size=30))
def test_labels_survive_any_name(name: str) -> None:
    name = name.replace("\r", "")
    state = RunState(run_id=name, name="", url="", state="running", resumable=False, alive=True)
    seen = Seen(name, "here", state)
    text = exposition(View((seen,), time=0.0, took=0.0, errors=0))
    found = {
        one.labels["run_id"] for family in text_string_to_metric_families(text) for one in family.samples if one.labels
    }
    assert found == {name}


# -- serving ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Monitor]]:
    monitor = Monitor(Discovery(), every=0.2)
    server = make_server(monitor, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", monitor
    server.shutdown()
    thread.join()
    server.server_close()
    if monitor._thread.is_alive():
        monitor.stop()


def get(url: str) -> tuple[int, str, str]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.headers["Content-Type"], answer.read().decode()


def test_the_list_is_whole_from_the_first_answer_on(tmp_path: Path, served: tuple[str, Monitor]) -> None:
    live(tmp_path)
    url, monitor = served
    threading.Timer(0.3, monitor.start).start()  # asked before it has looked
    status, kind, text = get(f"{url}/targets")
    assert status == 200 and kind == "application/json"
    assert targets_of(text) == ["127.0.0.1:4001", "127.0.0.1:4002"]
    assert get(f"{url}/metrics")[1].startswith("text/plain; version=0.0.4")
    assert "tiny-abcd" in get(f"{url}/")[2]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{url}/elsewhere")


def targets_of(text: str) -> list[str]:
    return [target for group in json.loads(text) for target in group["targets"]]


def test_a_look_that_breaks_ends_nothing(tmp_path: Path, served: tuple[str, Monitor], monkeypatch: Any) -> None:
    live(tmp_path)
    url, monitor = served
    monitor.start()
    assert len(targets_of(get(f"{url}/targets")[2])) == 2

    def broken(self: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Discovery, "scan", broken)
    time.sleep(0.5)
    status, _, text = get(f"{url}/targets")
    assert status == 200 and len(targets_of(text)) == 2
    assert monitor._thread.is_alive()


def test_a_taken_port_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot listen"):
            make_server(Monitor(Discovery()), host="127.0.0.1", port=taken.getsockname()[1])


# -- file_sd ---------------------------------------------------------------------------------------------------------
def test_the_file_is_replaced_as_a_whole_and_only_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    write = TargetFile(str(path))
    made = live(tmp_path)
    view = Monitor(Discovery(), on_view=[write]).refresh()
    first = path.stat()
    assert json.loads(path.read_text()) == view.groups()
    write(view)
    assert path.stat().st_ino == first.st_ino, "nothing has changed"
    made.end("completed", "done", 3, of_run=True)
    write(Monitor(Discovery()).refresh())
    assert json.loads(path.read_text()) == [] and path.stat().st_ino != first.st_ino
    assert sorted(name for name in os.listdir(tmp_path) if "targets" in name) == ["targets.json"]


@pytest.mark.parametrize(("name", "said"), [("targets.txt", "Prometheus reads"), ("nowhere/targets.json", "not there")])
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        TargetFile(str(tmp_path / name))


# -- as it is typed --------------------------------------------------------------------------------------------------
def monitor(*words: str) -> Result:
    return CliRunner().invoke(cli, ["monitor", *words], standalone_mode=False, catch_exceptions=False)


def test_once(tmp_path: Path) -> None:
    made = live(tmp_path)
    assert "127.0.0.1:4001" in monitor("--once").output
    assert targets_of(monitor("--json", "--file-sd", str(tmp_path / "t.json")).output) == [
        "127.0.0.1:4001",
        "127.0.0.1:4002",
    ]
    assert (tmp_path / "t.json").exists()
    assert monitor("--once", made.run.url).output.count("tiny-abcd") == 1, "named and registered is one run"
    with pytest.raises(UserError, match="no such run"):
        monitor("--once", "nonsense")


def test_it_serves_until_it_is_ended(tmp_path: Path) -> None:
    live(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "launchyard", "monitor", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        assert url.startswith("http://127.0.0.1:") and targets_of(get(url)[2])
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


def test_an_empty_view_is_whole_too() -> None:
    assert View((), 1.0, 0.0, 0).groups() == []
