"""A real Prometheus sees a real run of two workers, found by `launch monitor`, over a kill, a preemption, its end."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from launchyard.host.processes import end_marked, marked, worker_rank
from launchyard.launcher.recipe.bundled import recipe_folder
from launchyard.run.rundir import RunDir
from tests.monitoring.prometheus import FAST, Watching, plain_query, watching
from tests.monitoring.test_agree import DASHBOARDS, alerts, dashboard_queries
from tests.s3.runs import write_data
from tests.support.shell import Shell
from tests.support.small_runs import MODEL
from tests.support.store import S3Server, make_bucket

pytestmark = [pytest.mark.monitoring, pytest.mark.timeout(420)]

RECIPE: dict[str, Any] = {
    "name": "seen",
    "model": {**MODEL, "dim": 128, "ffn_dim": 512},
    "resources": {"nproc_per_node": 2, "max_failures": 2},
    "tokenizer": str(recipe_folder() / "quickstart/tokenizer.json"),  # for bits per byte
    "data": {"source": "x/train", "validation": "x/validation", "seq_len": 16, "seed": 3},
    "train": {"max_steps": 100_000, "global_batch_size": 32, "seed": 1, "device": "cpu"},
    "checkpoint": {"every_steps": 100, "keep": 3},
    "validation": {"every_steps": 150},
    "metrics": {"peak_flops": 1e11, "grad_norms": 10},
    "optimizer": {"groups": [{"match": "*norm*", "weight_decay": 0.0}]},
}
# Series of the second run, which learns from pairs in two files, is asked a task, and has code of its own.
OF_THE_SECOND = ("trainer_own_figure", "trainer_reward_", "trainer_source_tokens", "trainer_task_score")
# What a run on this machine cannot have.
NOT_HERE = {
    "DCGM_FI_": "there is no GPU; tests/monitoring/test_gpus.py has such series",
    "trainer_snapshot_copied_step": "a single node has no neighbour; tests/slurm/test_survival.py has one",
    "trainer_job_left_seconds": "a local run has no time limit",
    "trainer_loss_scale": "a loss in fp32 is not scaled",
}


class Live:
    """A run in a user's folders of its own, and what the tests do to it."""

    def __init__(self, root: Path, **recipe: Any) -> None:
        self.shell = Shell(root)
        self.run = RunDir(str(self.shell.here / "run"))
        (self.shell.here / "seen.yaml").write_text(yaml.safe_dump({**RECIPE, **recipe}))

    def launch(self, **env: str) -> None:
        self.shell.env |= env
        done = self.shell("seen.yaml", "--run-url", self.run.url, "--detach", timeout=120)
        assert done.returncode == 0, done.stderr

    def rows(self, attempt: int) -> list[dict[str, Any]]:
        return list(self.run.attempt_rows("steps", attempt))

    def happened(self, attempt: int, event: str) -> bool:
        return any(one["event"] == event for one in self.run.events(attempt))

    def wait(self, done: Any, seconds: float = 240.0) -> Any:
        end = time.monotonic() + seconds
        while not (value := done()):
            assert time.monotonic() < end, self.looks()
            time.sleep(0.2)
        return value

    def looks(self) -> str:
        logs = [*Path(self.run.url).glob("*.log"), *Path(self.run.url).glob("attempts/*/logs/*.log")]
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-2000:]}" for path in logs)

    def trains(self, attempt: int, steps: int) -> bool:
        """It has made more steps than that, for long enough to be scraped several times."""
        if attempt not in self.run.attempts() or len(rows := self.rows(attempt)) <= steps:
            return False
        return bool(rows[-1]["time"] - rows[0]["time"] > TRAIN_SECONDS)

    def worker(self, attempt: int, rank: int) -> psutil.Process:
        return next(one for one in marked(self.run.url, attempt=attempt) if worker_rank(one) == rank)

    def close(self) -> None:
        for attempt in self.run.attempts()[-1:]:
            pid = self.run.job(attempt).pid
            if psutil.pid_exists(pid) and self.run.outcome() is None:
                psutil.Process(pid).kill()
        end_marked(self.run.url)


TRAIN_SECONDS = 8.0  # of each attempt; Prometheus comes every second


@dataclass
class Seen:
    """A run that is over, and the Prometheus that has seen it."""

    live: Live
    prometheus: Watching
    since: float
    until: float


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, prometheus: str, s3_server: S3Server) -> Iterator[Seen]:
    root = tmp_path_factory.mktemp("live")
    bucket = make_bucket(s3_server, "test-monitoring")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment.items():
            patch.setenv(name, value)
        data = write_data(f"{bucket.url}/data")
        live = Live(
            root / "user",
            data={**RECIPE["data"], "source": data.train[0].folder, "validation": data.validation[0].folder},
        )
        since = time.time()
        with watching(root / "prometheus", prometheus, {**live.shell.env, **bucket.environment}) as found:
            try:
                live.launch(**bucket.environment)
                undergo(live, found)
                yield Seen(live, found, since, time.time())
            finally:
                live.close()


def undergo(live: Live, prometheus: Watching) -> None:
    """Train, lose a worker, go on, be preempted, go on, stop."""
    scraped = 'count(trainer_step{attempt="%d"} > %d)'
    live.wait(lambda: live.trains(0, 250) and prometheus.value(scraped % (0, 250)))
    live.worker(0, 1).send_signal(signal.SIGKILL)
    live.wait(lambda: live.trains(1, 150))
    live.wait(lambda: prometheus.value(scraped % (1, 0)))
    os.kill(live.run.job(1).pid, signal.SIGUSR1)
    live.wait(lambda: live.trains(2, 150))
    live.wait(lambda: prometheus.value('max(trainer_rank_compute_ratio{attempt="2"})'))
    assert live.shell("stop", live.run.url, timeout=90).returncode == 0
    live.wait(lambda: prometheus.value('launcher_run_state{state="stopped"}') == 1)


OF_PAIRS: dict[str, Any] = {
    "name": "pairs",
    "code": "own.py",
    "model": {"family": "llama", "dim": 32, "n_layers": 1, "n_heads": 2, "ffn_dim": 64, "max_seq_len": 256},
    "tokenizer": str(recipe_folder() / "quickstart/tokenizer.json"),
    "data": {"kind": "preference", "seq_len": 256, "style": "alpaca", "validation": 0.1},
    "preference": {"loss": "simpo"},
    "train": {"max_steps": 100_000, "global_batch_size": 2, "device": "cpu"},
    "validation": {"every_steps": 20, "tasks": ["choice.yaml"], "tasks_every_steps": 20},
}
CHOICE = {
    "task": "choice",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "what is {{prompt}}",
    "doc_to_choice": ["{{chosen}}", "{{rejected}}"],
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture(scope="module")
def since_pairs(seen: Seen) -> float:
    """When a second run began, after all that other tests look at: one that learns from pairs of answers, and is
    asked a task."""
    shell = seen.live.shell
    rows = [{"prompt": f"what is {n}?", "chosen": f"it is {n}", "rejected": "no"} for n in range(40)]
    files = {"pairs.jsonl": rows[:30], "more.jsonl": rows[30:]}
    for name, some in files.items():
        (shell.here / name).write_text("\n".join(map(json.dumps, some)))
    mixture = [{"source": name, "weight": len(some)} for name, some in files.items()]
    recipe = {**OF_PAIRS, "data": {**OF_PAIRS["data"], "mixture": mixture}}
    of_task = {"data_files": {"test": str(shell.here / "pairs.jsonl")}, "cache_dir": str(shell.here / "cache")}
    (shell.here / "choice.yaml").write_text(yaml.safe_dump({**CHOICE, "dataset_kwargs": of_task}))
    (shell.here / "own.py").write_text("def on_step(row):\n    return {'twice': 2 * row.loss}\n")
    (shell.here / "pairs.yaml").write_text(yaml.safe_dump(recipe))
    since = time.time()
    done = shell("pairs.yaml", "--run-url", "pairs", "--detach", timeout=120)
    assert done.returncode == 0, done.stderr
    try:
        shown = 'count(trainer_reward_accuracy{dataset="validation"})'
        seen.live.wait(lambda: seen.prometheus.value(shown))
        seen.live.wait(lambda: seen.prometheus.value('count(trainer_task_score{task="choice",metric="acc"})'))
    finally:
        assert shell("stop", "pairs", timeout=90).returncode == 0
    return since


# -- values ----------------------------------------------------------------------------------------------------------
def raw(seen: Seen, name: str, attempt: int) -> list[tuple[float, float]]:
    """All scraped samples of a series of rank 0: (Unix time, value)."""
    found = seen.prometheus.query(f'{name}{{attempt="{attempt}"}}[15m]', at=seen.until)
    assert len(found) == 1, (name, found)
    return [(float(when), float(value)) for when, value in found[0]["values"]]


def row_at(rows: list[dict[str, Any]], when: float) -> dict[str, Any] | None:
    number = bisect_right([row["time"] for row in rows], when)
    return rows[number - 1] if number else None


@pytest.mark.parametrize("attempt", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("trainer_step", "step"),
        ("trainer_tokens_seen", "tokens_seen"),
        ("trainer_loss", "loss"),
        ("trainer_grad_norm", "grad_norm"),
        ("trainer_learning_rate", "lr"),
    ],
)
def test_gauges_are_those_of_the_rows(seen: Seen, name: str, key: str, attempt: int) -> None:
    """Each sample is within 1 % of a row that was the newest at about that time."""
    rows, samples = seen.live.rows(attempt), raw(seen, name, attempt)
    assert len(samples) >= 3
    for when, value in samples:
        near = [row[key] for row in rows if when - 1.5 <= row["time"] <= when + 1.5] or [row_at(rows, when)[key]]  # type: ignore[index]
        assert any(value == pytest.approx(one, rel=0.01) for one in near), (when, value, near)


def tokens_at(seen: Seen, attempt: int, step: int) -> int:
    return next(int(row["tokens_seen"]) for row in seen.live.rows(attempt) if row["step"] == step)


@pytest.mark.parametrize("attempt", [1, 2])
def test_counters_are_the_sums_of_the_rows(seen: Seen, attempt: int) -> None:
    """As far as was scraped; an attempt that is not in a hurry (a stop, not a preemption) waits until all of it is."""
    rows = seen.live.rows(attempt)
    before = tokens_at(seen, attempt - 1, seen.live.run.starts()[attempt])
    (when, tokens), (_, count), (_, seconds) = (
        raw(seen, name, attempt)[-1]
        for name in (
            "trainer_tokens_total",
            "trainer_step_duration_seconds_count",
            "trainer_step_duration_seconds_sum",
        )
    )
    done = rows[: int(count)]
    assert len(done) == len(rows) or (attempt == 1 and when - 1.5 < done[-1]["time"] < when + 1.5)
    assert tokens == pytest.approx(done[-1]["tokens_seen"] - before, rel=0.01)
    assert seconds == pytest.approx(sum(row["step_seconds"] for row in done), rel=0.01)


def test_what_was_done_again_is_counted(seen: Seen) -> None:
    """The kill cost the steps after the last save."""
    again = seen.live.rows(0)[-1]["tokens_seen"] - tokens_at(seen, 0, seen.live.run.starts()[1])
    found = raw(seen, "trainer_recomputed_tokens_total", 1)[-1][1]
    assert again > 0 and found == pytest.approx(again, rel=0.01)


def test_phases_sum_to_the_time_of_the_worker(seen: Seen) -> None:
    for rank in (0, 1):
        found = seen.prometheus.query(f'trainer_phase_seconds_total{{attempt="2",rank="{rank}"}}[15m]', at=seen.until)
        scrapes: dict[float, float] = {}
        for one in found:
            for when, value in one["values"]:
                scrapes[when] = scrapes.get(when, 0.0) + float(value)
        (first, at_first), *_, (last, at_last) = sorted(scrapes.items())
        assert last - first > 3
        assert at_last - at_first == pytest.approx(last - first, rel=0.01, abs=0.5)  # scrapes take time


def test_attempts_are_counted_by_how_they_ended(seen: Seen) -> None:
    found = {
        one["metric"]["result"]: float(one["value"][1])
        for one in seen.prometheus.query("launcher_run_attempts_total", at=seen.until)
    }
    assert {name: value for name, value in found.items() if value} == {"failed": 1, "preempted": 1, "stopped": 1}


# -- dashboards ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("board", "query"),
    [(path.stem, query) for path in DASHBOARDS for query in dashboard_queries(path)],
    ids=lambda word: re.sub(r"\W+", "_", word)[:60],
)
def test_every_query_returns_data(seen: Seen, board: str, query: str, request: pytest.FixtureRequest) -> None:
    """Of panels and annotations, over the run's time; variables: the values that they offer."""
    variable = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
    if variable:
        found = seen.prometheus.series(plain_query(variable[1]), seen.since)
        assert {one[variable[2]] for one in found}
        return
    times = (seen.since, seen.until)
    if any(name in query for name in OF_THE_SECOND):
        times = (request.getfixturevalue("since_pairs"), time.time())
    found = seen.prometheus.over(plain_query(query), *times)
    if any(name in query for name in NOT_HERE):
        assert not found
        return
    assert found and any(value != "NaN" for one in found for _, value in one["values"]), plain_query(query)


# -- alarms ----------------------------------------------------------------------------------------------------------
def test_after_its_end_nothing_is_down_and_no_alert_has_fired(seen: Seen) -> None:
    prometheus = seen.prometheus
    prometheus.wait(lambda: not prometheus.query('up{job="launchyard"}'), 20)
    assert json.loads(json.dumps(prometheus.query("up == 0"))) == []
    fired = prometheus.over('ALERTS{alertstate="firing"}', seen.since, time.time())
    assert {one["metric"]["alertname"] for one in fired} == {"Watchdog"}
    told = {rule["name"] for group in prometheus._ask("rules")["groups"] for rule in group["rules"]}
    assert set(alerts()) <= told


def test_a_stopped_rank_raises_the_stall_alert_and_the_watchdog(tmp_path: Path, prometheus: str) -> None:
    """SIGSTOP: it answers nothing, and the other waits for it. The watchdog ends the attempt; the run goes on."""
    data = write_data(str(tmp_path / "data"))
    live = Live(
        tmp_path / "user",
        data={**RECIPE["data"], "source": data.train[0].folder, "validation": data.validation[0].folder},
    )
    with watching(tmp_path / "prometheus", prometheus, live.shell.env, fast=FAST) as found:
        try:
            live.launch()
            live.wait(lambda: len(live.rows(0)) > 30 and found.query("trainer_step > 30"))
            assert "RunStalled" not in found.firing()
            live.worker(0, 1).send_signal(signal.SIGSTOP)
            began = time.monotonic()
            found.wait(lambda: "RunStalled" in found.firing(), 40)
            found.wait(lambda: found.value('sum(launcher_run_attempts_total{result="hung"})') == 1, 90)
            assert time.monotonic() - began < 75
            live.wait(lambda: len(live.rows(1)) > 30)
            found.wait(lambda: not found.firing() & {"RunStalled", "RunDown"}, 40)
        finally:
            live.close()
