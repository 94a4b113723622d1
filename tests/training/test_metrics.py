"""Metrics: one table, phases that sum to wall time, and an endpoint that says what the rows say."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.small import make_run, start_workers, write_data
from training.metrics import METRICS, PHASES, Exporter, NoExporter, PhaseClock


def scrape(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(PHASES), max_size=40))
def test_phases_sum_to_wall_time(phases: list[str]) -> None:
    began = time.monotonic()
    clock = PhaseClock()
    for phase in phases:
        clock.enter(phase)
    total, wall = clock.total(), time.monotonic() - began
    assert total == pytest.approx(wall, abs=1e-3)
    assert total == pytest.approx(sum(clock.seconds.values()))


def test_names_follow_the_conventions() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(rf"{metric.source}_[a-z_]+", metric.name)
        assert metric.help.endswith(".")
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert not set(metric.labels) & {"step", "message", "job"}
        assert metric.scope == "rank" or "rank" not in metric.labels
        assert len(metric.buckets) <= 12


def test_only_rank_zero_reports_what_is_global() -> None:
    zero, one = Exporter(rank=0, host="127.0.0.1"), Exporter(rank=1, host="127.0.0.1")
    try:
        for exporter in (zero, one):
            exporter.set("trainer_step", 7)
            exporter.memory(123)
        assert scrape(zero.url)["trainer_step"] == 7
        assert "trainer_step" not in scrape(one.url)
        assert scrape(one.url)['trainer_memory_peak_bytes{rank="1"}'] == 123
    finally:
        zero.close()
        one.close()


def test_without_metrics_nothing_listens() -> None:
    exporter = NoExporter()
    exporter.set("trainer_step", 1)
    assert exporter.url is None


def test_a_live_run_says_what_its_rows_say(tmp_path: Path) -> None:
    """Two workers, scraped through the addresses that they leave in the run directory."""
    run = make_run(
        tmp_path / "run", write_data(tmp_path / "data"), {"train.max_steps": 100_000, "metrics.prometheus": True}
    )
    processes = start_workers(run, 2)
    try:
        end = time.monotonic() + 60
        while len(list(run.rows("steps"))) < 20:
            assert time.monotonic() < end and all(process.poll() is None for process in processes)
            time.sleep(0.05)
        urls = [target.url for target in run.targets(0)]
        assert len(urls) == 2 and all(url.startswith("http://127.0.0.1:") for url in urls)
        for process in processes:
            process.terminate()  # an agreed stop; the numbers stay until the process ends
        series = scrape(urls[0])
        rows = {row["step"]: row for row in run.rows("steps")}
        step = int(series["trainer_step"])
        assert series["trainer_tokens_seen"] == rows[step]["tokens_seen"]
        assert series["trainer_loss"] == rows[step]["loss"]
        assert series["trainer_world_size"] == 2
        phases = sum(value for name, value in series.items() if name.startswith("trainer_phase_seconds_total"))
        assert phases == pytest.approx(time.time() - run.events(0)[0]["born"], abs=1.0)
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
