"""Metrics: one table, phases that sum to wall time, and an endpoint that says what the rows say."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.host.processes import born_at
from launchyard.model.devices import peak_bytes, peak_flops
from launchyard.run.events import SAVE_FAILED, SAVED
from launchyard.run.rundir import RunDir
from launchyard.training.telemetry import telemetry
from launchyard.training.telemetry.buckets import Buckets
from launchyard.training.telemetry.events import SaveEvents
from launchyard.training.telemetry.exporter import Exporter
from launchyard.training.telemetry.metric_table import METRICS
from launchyard.training.telemetry.phases import PHASES, PhaseClock
from launchyard.training.telemetry.spikes import SpikeFinder
from launchyard.training.telemetry.stragglers import IN_A_ROW, Stragglers
from tests.support.small_runs import make_run, start_workers, write_data


def scrape(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


# -- the clock ---
@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(PHASES), max_size=40))
def test_phases_sum_to_wall_time(phases: list[str]) -> None:
    earliest = time.monotonic()
    clock = PhaseClock()
    latest = time.monotonic()
    for phase in phases:
        clock.enter(phase)
    least = time.monotonic() - latest
    total = clock.total()
    assert least - 1e-9 <= total <= time.monotonic() - earliest + 1e-9
    assert total == pytest.approx(sum(clock.seconds.values()))


def test_laps_sum_to_the_truth() -> None:
    clock = PhaseClock()
    told = dict.fromkeys(PHASES, 0.0)
    for number in range(500):
        clock.enter(PHASES[number % len(PHASES)])
        if number % 3 == 0 or number == 499:
            for phase, seconds in clock.lap().items():
                told[phase] += seconds
    for phase in PHASES:
        assert told[phase] == pytest.approx(clock.seconds[phase], abs=2e-5)


def test_another_thread_never_sees_too_much() -> None:
    """A counter that falls looks like a restart, so what a scrape sees may lag, and must not run ahead."""
    clock = PhaseClock()
    began = time.monotonic()
    seen: list[float] = []

    class Watched(dict[str, float]):
        """Looks as another thread would, in the middle of a switch."""

        def __setitem__(self, phase: str, seconds: float) -> None:
            super().__setitem__(phase, seconds)
            seen.append(sum(clock.so_far().values()) - (time.monotonic() - began))

    clock.seconds = Watched(clock.seconds)
    for phase in PHASES:
        clock.enter(phase)
        time.sleep(0.01)
    assert len(seen) == len(PHASES)
    assert max(seen) < 1e-3


def test_a_collective_inside_a_step_is_nobodys_compute() -> None:
    clock = PhaseClock()
    for phase, counted in (("forward_backward", "collective_wait"), ("validation", "validation")):
        clock.enter(phase)
        before = clock.seconds[counted]
        with clock.waits():
            time.sleep(0.2)
        assert clock.phase == phase
        assert clock.seconds[counted] - before >= 0.2
    assert clock.seconds["forward_backward"] < 0.2


# -- the table and the endpoint ---
def test_names_follow_the_conventions() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(rf"{metric.source}_[a-z_]+", metric.name)
        assert metric.help.endswith(".")
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert not set(metric.labels) & {"step", "message", "job"}
        assert metric.scope == "rank" or "rank" not in metric.labels
        assert len(metric.buckets) <= 12


def test_only_rank_zero_reports_what_is_global() -> None:
    zero, one = Exporter(rank=0, host="127.0.0.1"), Exporter(rank=1, host="127.0.0.1")
    try:
        for exporter in (zero, one):
            exporter.set("trainer_step", 7)
            exporter.state("training")
            exporter.set("trainer_memory_peak_bytes", 123)
            exporter.observe("trainer_step_duration_seconds", 0.2)
        assert scrape(zero.url)["trainer_step"] == 7
        assert not any(name.startswith(("trainer_step", "trainer_state")) for name in scrape(one.url))
        assert scrape(one.url)['trainer_memory_peak_bytes{rank="1"}'] == 123
    finally:
        zero.close()
        one.close()


def test_histograms_and_counters_as_prometheus_wants_them() -> None:
    exporter = Exporter(rank=0, host="127.0.0.1")
    try:
        for seconds in (0.005, 0.01, 0.02, 200.0):
            exporter.observe("trainer_step_duration_seconds", seconds)
        exporter.count("trainer_recomputed_tokens_total", 5)
        exporter.count("trainer_recomputed_tokens_total", 4)  # never falls
        series = scrape(exporter.url)
        name = "trainer_step_duration_seconds"
        assert series[f'{name}_bucket{{le="0.01"}}'] == 2
        assert series[f'{name}_bucket{{le="0.03"}}'] == 3
        assert series[f'{name}_bucket{{le="+Inf"}}'] == series[f"{name}_count"] == 4
        assert series[f"{name}_sum"] == pytest.approx(200.035)
        assert series["trainer_recomputed_tokens_total"] == 5
        assert series["trainer_tokens_total"] == 0  # there before its first increase
        assert "trainer_mfu_ratio" not in series  # unknown is absent, not wrong
        assert not any(name.endswith("_created") for name in series)
    finally:
        exporter.close()


@given(st.lists(st.floats(0, 1000), max_size=50))
def test_buckets_hold_every_value_once(values: list[float]) -> None:
    buckets = Buckets((0.1, 1.0, 10.0))
    for value in values:
        buckets.add(value)
    assert sum(buckets.counts) == len(values)
    assert buckets.counts[0] == sum(value <= 0.1 for value in values)
    assert buckets.total == pytest.approx(sum(values))


def test_a_last_scrape_is_waited_for_only_if_somebody_comes() -> None:
    exporter = Exporter(rank=0, host="127.0.0.1")
    try:
        began = time.monotonic()
        assert not exporter.last_scrape()
        assert time.monotonic() - began < 2
        scrape(exporter.url)
        later = threading.Timer(0.3, scrape, [exporter.url])
        later.start()
        assert exporter.last_scrape()
        later.join()
        assert not exporter.last_scrape(0.2)
    finally:
        exporter.close()


def shown(exporter: Exporter, name: str) -> list[float]:
    return [sample.value for family in exporter.collect() if family.name == name for sample in family.samples]


def test_failed_saves_are_counted_until_one_works() -> None:
    exporter = Exporter(rank=0, host="127.0.0.1")
    try:
        told = list[str]()
        tell = SaveEvents(lambda name, /, **facts: told.append(name), exporter)
        for event, count in ((SAVED, 0), (SAVE_FAILED, 1), (SAVE_FAILED, 2), (SAVED, 0), (SAVE_FAILED, 1)):
            tell(event, step=1, kind="temporary")
            tell("store trouble")
            assert shown(exporter, "trainer_checkpoint_failures_in_a_row") == [count]
        assert told.count("store trouble") == 5
    finally:
        exporter.close()


def test_the_time_left_is_by_the_clock_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """It falls as that does, and through 0, with no need of another clock."""
    now = [1_000.0]
    monkeypatch.setattr(telemetry.time, "time", lambda: now[0])
    exporter = Exporter(rank=0, host="127.0.0.1")
    try:
        exporter.before_scrapes(partial(telemetry._show_time_left, 1_030.0))
        for moment, left in ((1_000.0, 30.0), (1_020.0, 10.0), (1_040.0, -10.0)):
            now[0] = moment
            assert shown(exporter, "trainer_job_left_seconds") == [left]
    finally:
        exporter.close()


def test_without_metrics_nothing_listens() -> None:
    """Every call is taken all the same, and a misspelt one is an error."""
    exporter = Exporter(rank=0, host=None)
    exporter.set("trainer_step", 1)
    exporter.observe("trainer_step_duration_seconds", 0.2)
    exporter.state("training")
    exporter.row({"time": 1.0, "step": 1}, tokens=1, flops=1.0, mfu=None)
    assert not exporter.enabled and exporter.url is None
    assert list(exporter.collect()) == []
    assert not exporter.last_scrape()
    exporter.close()
    with pytest.raises(AttributeError):
        exporter.sett  # type: ignore[attr-defined]  # noqa: B018


# -- losses and ranks that stand out ---
def test_a_spike_stands_out_and_a_falling_loss_does_not() -> None:
    finder = SpikeFinder()
    assert not any(finder.update(8.0 * 0.99**step + 0.05 * (-1) ** step) for step in range(300))
    assert finder.update(3.0) is not None
    assert finder.update(3.0) is not None  # the first one has not become the usual
    assert finder.update(0.5) is None


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=8))
def test_only_slow_ranks_are_stragglers(seconds: list[float]) -> None:
    stragglers = Stragglers()
    found = [one for _ in range(IN_A_ROW) for one in stragglers.update(seconds)]
    assert [one.rank for one in found] == [rank for rank, ratio in enumerate(stragglers.ratios) if ratio > 1.3]
    assert not [one for _ in range(10) for one in stragglers.update(seconds)]  # said once


def test_steps_too_short_to_be_told_apart_have_no_straggler() -> None:
    """Half a millisecond more is twice as long, and nothing."""
    stragglers = Stragglers()
    assert not [one for _ in range(2 * IN_A_ROW) for one in stragglers.update([0.0005, 0.001, 0.002])]
    assert stragglers.ratios == [1.0, 1.0, 1.0]


def test_a_straggler_gets_well() -> None:
    stragglers = Stragglers()
    slow, well = [0.1, 0.1, 0.2, 0.1], [0.1] * 4
    assert [one.rank for _ in range(IN_A_ROW) for one in stragglers.update(slow)] == [2]
    assert not stragglers.update(well)
    (over,) = [one for _ in range(IN_A_ROW) for one in stragglers.update(well)]
    assert over.rank == 2 and not over.slow


def test_peaks_are_of_the_right_device() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA GB200") == 2.5e15
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("Some Other Card") is None
    assert peak_bytes("NVIDIA H100 80GB HBM3") == 3.35e12
    assert peak_bytes("NVIDIA A100-SXM4-40GB") == 1.555e12
    assert peak_bytes("NVIDIA A100-SXM4-80GB") == 2.039e12
    assert peak_bytes("Some Other Card") is None


# -- a run ---
def await_rows(run: RunDir, attempt: int, rows: int, processes: list) -> None:  # type: ignore[type-arg]
    end = time.monotonic() + 60
    while len(list(run.attempt_rows("steps", attempt))) < rows:
        assert time.monotonic() < end and all(process.poll() is None for process in processes)
        time.sleep(0.02)


def phases_of(series: dict[str, float]) -> float:
    return sum(value for name, value in series.items() if name.startswith("trainer_phase_seconds_total"))


def test_a_live_run_says_what_its_rows_say_across_a_kill(tmp_path: Path) -> None:
    """Two workers, scraped through the targets that they leave in the run directory; killed, resumed, stopped."""
    overrides = {"train.max_steps": 100_000, "metrics.prometheus": True, "metrics.peak_flops": 1e9}
    run = make_run(tmp_path / "run", write_data(tmp_path / "data"), overrides)
    for attempt in (0, 1):
        processes = start_workers(run, 2, created=time.time())
        try:
            await_rows(run, attempt, 20, processes)
            urls = [target.url for target in run.targets(attempt)]
            assert [target.rank for target in run.targets(attempt)] == [0, 1]
            assert all(url.startswith("http://127.0.0.1:") for url in urls)
            for rank, url in enumerate(urls):
                began = born_at(processes[rank].pid) or 0.0
                before = time.time() - began
                series = scrape(url)
                assert 0.99 * before <= phases_of(series) <= 1.01 * (time.time() - began)
                assert series[f'trainer_memory_allocated_bytes{{rank="{rank}"}}'] > 1e6
                assert f'trainer_rank_compute_ratio{{rank="{rank}"}}' in series
                if rank == 0:
                    zero = series
                    scraped = time.time()
            rows = {row["step"]: row for row in run.attempt_rows("steps", attempt)}
            row = rows[int(zero["trainer_step"])]
            assert zero["trainer_tokens_seen"] == row["tokens_seen"]
            assert zero["trainer_loss"] == row["loss"]
            assert zero["trainer_mfu_ratio"] == pytest.approx(row["mfu"], rel=0.01, abs=1e-4)
            assert zero["trainer_peak_flops"] == 2e9
            assert zero["trainer_world_size"] == 2
            assert 0 < zero["trainer_goodput_ratio"] < 1
            causes = {name: value for name, value in zero.items() if name.startswith("trainer_run_seconds")}
            assert sum(causes.values()) == pytest.approx(scraped - run.job(0).created, abs=1.0)
            assert zero["trainer_goodput_ratio"] == pytest.approx(
                causes['trainer_run_seconds{cause="productive"}'] / sum(causes.values())
            )
            if attempt == 0:
                assert zero["trainer_recomputed_tokens_total"] == 0
                for process in processes:
                    process.kill()
                    process.wait()
                assert len(run.targets(0)) == 2  # nobody could remove them
            else:
                reached = max(row["step"] for row in run.attempt_rows("steps", 0))
                again = [row for step, row in rows.items() if step <= reached]
                expected = sum(row["tokens_per_second"] * row["step_seconds"] for row in again)
                assert zero["trainer_recomputed_tokens_total"] == pytest.approx(expected, rel=0.01)
                for process in processes:
                    process.terminate()  # an agreed stop
                assert [process.wait(timeout=60) for process in processes] == [0, 0]
                assert run.targets(1) == []
        finally:
            for process in processes:
                process.kill()
                process.wait()
    told = [event for event in run.events(1) if event["event"] == "saved before stopping"]
    assert len(told) == 1 and 0 < told[0]["seconds"] < 30
    check_row_phases(run)


def check_row_phases(run: RunDir) -> None:
    """The phases of rank 0's rows sum to the time between them, and to that since the process began."""
    for attempt in (0, 1):
        rows = list(run.attempt_rows("steps", attempt))
        born = next(event["born"] for event in run.events(attempt) if event["event"] == "process started")
        total = sum(sum(row["phases"].values()) for row in rows)
        assert total == pytest.approx(rows[-1]["time"] - born, rel=0.01)
        assert set().union(*(row["phases"] for row in rows)) >= {"init", "forward_backward", "collective_wait"}
