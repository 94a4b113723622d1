"""The alerts that test_night.py does not show: real runs and real faults, seen by a real Prometheus.

Every fault is switched on when nothing fires, and off again until nothing does. Minutes are seconds here. The table in
docs/guides/alerts.md says which test shows which alert.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import yaml

from launchyard.model.config import ModelConfig
from launchyard.model.cost import flops_per_token
from launchyard.run.rundir import RunDir
from launchyard.training.telemetry.exporter import Exporter
from tests.launcher.backends.slurm.conftest import slurm as slurm
from tests.monitoring.made import Made
from tests.monitoring.prometheus import Watching, watching
from tests.monitoring.test_live import RECIPE, Live
from tests.s3.runs import write_data
from tests.support.fake_slurm import FakeSlurm
from tests.support.faultproxy import FaultProxy
from tests.support.faults import Answer, Fault, Slow, where
from tests.support.shell import Shell
from tests.support.small_runs import MODEL
from tests.support.store import Bucket

pytestmark = [pytest.mark.monitoring, pytest.mark.slow, pytest.mark.timeout(560)]

# What a rule counts or averages over, how long it waits, and how old a thing may be.
SECONDS = {
    "last_look_timestamp_seconds[2m]": "last_look_timestamp_seconds[10s]",
    "[1h] offset 10m": "[20s] offset 6s",
    "duration_seconds[1h]": "duration_seconds[8s]",
    "errors_total[15m]) > 10": "errors_total[20s]) > 2",  # a look at a store that is away takes longer than one second
    **{f"[{minutes}m]": f"[{seconds}s]" for minutes, seconds in ((2, 5), (5, 6), (10, 8), (15, 8))},
    **{f"for: {minutes}m": "for: 2s" for minutes in (1, 2, 5, 10, 15, 30)},
    "+ 300": "+ 2",
    "> 86400": "> 20",
}
ALWAYS = {"Watchdog"}
STARTS = ("DiscoveryEmpty", "RunDown")  # to leave a job and start the next takes longer than two seconds
# May come at any moment on a machine with other work to do.
WEATHER = frozenset({"ThroughputDrop", "LowMFU", "Straggler", "DataStarved"})
# A local run has a notice of ten minutes; so much of it is 3.6 s.
HASTE = {"0.8 * launcher_run_notice_seconds": "0.006 * launcher_run_notice_seconds"}
QUIET_SECONDS = 3.0
STEP_SECONDS = 0.2
BATCH = 32
# A file of this name beside the code: what happens while it is there.
OWN = f"""
import os, pathlib, time
import torch
import torch.nn.functional as F
HERE = pathlib.Path({{here!r}})

def _on(name):
    return (HERE / name).exists()

def _seconds():
    if _on("slow-steps"):
        return {10 * STEP_SECONDS}
    return {4 * STEP_SECONDS} if _on("slow-rank") and os.environ.get("RANK") == "1" else {STEP_SECONDS}

def batches(sample_numbers, seq_len, seed, vocab_size):
    if _on("slow-data"):
        time.sleep({8 * STEP_SECONDS})
    rows = []
    for number in sample_numbers:
        chance = torch.Generator().manual_seed(seed + number)
        rows.append(torch.randint(vocab_size, (seq_len + 1,), generator=chance))
    return rows

def loss(model, tokens, labels):
    time.sleep(_seconds())
    logits = model(tokens)
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total * (float("nan") if _on("nan") else 30.0 if _on("spike") else 1.0)
"""
HANGS = """
import pathlib, time
HERE = pathlib.Path({here!r})

def on_step(row):
    time.sleep(0.05)
    while (HERE / "hang").exists():
        time.sleep(0.1)
"""


@dataclass
class Shift:
    """Somebody who watches the alerts, but for those that a test is not about."""

    prometheus: Watching
    ignored: frozenset[str] = frozenset()

    def silent(self, seconds: float = 120.0, *, but: tuple[str, ...] = ()) -> None:
        """For some seconds on end, but for these."""
        since = time.monotonic()

        def quiet() -> bool:
            nonlocal since
            if self.prometheus.firing() - {*but} - self.ignored != ALWAYS:
                since = time.monotonic()
            return time.monotonic() - since > QUIET_SECONDS

        self.prometheus.wait(quiet, seconds)

    def fires(self, *alerts: str, also: tuple[str, ...] = (), seconds: float = 60.0) -> None:
        """All of these at once, and none but those that may, and the weather."""
        seen = set[str]()

        def all_of_them() -> bool:
            firing = self.prometheus.firing()
            seen.update(firing)
            return firing >= {*alerts}

        self.prometheus.wait(all_of_them, seconds)
        assert seen <= {*alerts, *also} | ALWAYS | WEATHER, self.prometheus.looks()

    @contextmanager
    def shows(self, *alerts: str, also: tuple[str, ...] = (), seconds: float = 60.0) -> Iterator[None]:
        """Nothing fires before the fault that is made inside, these do then; who ends it looks for silence next."""
        self.silent()
        yield
        self.fires(*alerts, also=also, seconds=seconds)


@dataclass(frozen=True)
class Switch:
    """A file beside the user's code."""

    path: Path

    @contextmanager
    def on(self) -> Iterator[None]:
        self.path.touch()
        try:
            yield
        finally:
            self.path.unlink()


# -- what workers do -------------------------------------------------------------------------------------------------
def peak_flops() -> float:
    """Of a device that steps of STEP_SECONDS alone would use whole."""
    tokens = BATCH * RECIPE["data"]["seq_len"]
    return flops_per_token(ModelConfig.model_validate(MODEL), RECIPE["data"]["seq_len"]) * tokens / STEP_SECONDS / 2


def of_own_code(root: Path) -> Live:
    live = Live(
        root,
        code="own.py",
        model=MODEL,
        tokenizer=None,
        data={"seq_len": RECIPE["data"]["seq_len"], "seed": 3},
        train={**RECIPE["train"], "global_batch_size": BATCH},
        metrics={"peak_flops": peak_flops()},
        optimizer={"lr": 1e-5},
        validation={},
        resources={"nproc_per_node": 2, "max_failures": 0},
    )
    (live.shell.here / "own.py").write_text(OWN.format(here=str(live.shell.here)))
    return live


def test_what_workers_do_and_who_watches_them(tmp_path: Path, prometheus: str) -> None:
    """A run of two workers whose steps, loader or second rank are slow, whose loss jumps and is no number at last."""
    live = of_own_code(tmp_path / "user")
    with watching(tmp_path / "prometheus", prometheus, live.shell.env, fast=SECONDS) as found:
        shift = Shift(found)
        try:
            live.launch()
            live.wait(lambda: len(live.rows(0)) > 40)
            slow_things(live, shift)
            one_who_watches_is_away(live, shift)
            a_loss_that_is_no_number(live, shift)
        finally:
            live.close()


def slow_things(live: Live, shift: Shift) -> None:
    here = live.shell.here
    for name, alerts in (
        ("slow-data", ("DataStarved", "ThroughputDrop")),
        ("slow-rank", ("Straggler", "ThroughputDrop")),
        ("slow-steps", ("LowMFU", "ThroughputDrop")),
        ("spike", ("LossSpike",)),
    ):
        shift.silent()
        with Switch(here / name).on():
            shift.fires(*alerts)
    shift.silent()


def one_who_watches_is_away(live: Live, shift: Shift) -> None:
    """A worker's address is lost, Prometheus is configured to drop them all, the monitor is stopped."""
    prometheus = shift.prometheus
    target = Path(live.run.path("attempts/0000/targets/00001.json"))
    kept = target.read_bytes()
    with shift.shows("WorkersMissing"):
        target.unlink()
    target.write_bytes(kept)
    with shift.shows("DiscoveryEmpty"):
        prometheus.scrape_runs(False)
    prometheus.scrape_runs(True)
    monitor = prometheus.processes["monitor"]
    with shift.shows("MonitorDown"):
        monitor.send_signal(signal.SIGSTOP)
    monitor.send_signal(signal.SIGCONT)
    shift.silent()


def a_loss_that_is_no_number(live: Live, shift: Shift) -> None:
    """The run has failed then, and pages for that until it is resumed; the alert about the loss ends before."""
    with Switch(live.shell.here / "nan").on():
        shift.fires("RunLossNotFinite", "RunFailed")
    shift.silent(but=("RunFailed",))
    assert "RunFailed" in shift.prometheus.firing()
    assert live.shell("resume", live.run.url, "--detach", timeout=240).returncode == 0
    shift.silent()
    live.wait(lambda: len(live.rows(1)) > 5)


# -- a store ---------------------------------------------------------------------------------------------------------
SHARDS = where(method="PUT", key=r"checkpoints/.*\.safetensors$")
CHUNKS = where(method="GET", key=r"train/.*\.bin$")


def in_a_store(root: Path, bucket: Bucket) -> Live:
    data = write_data(f"{bucket.url}/data")
    live = Live(
        root,
        data={**RECIPE["data"], "source": data.train[0].folder, "validation": data.validation[0].folder},
        checkpoint={"every_steps": 60, "keep": 2},
        resources={"nproc_per_node": 1, "max_failures": 2},
        validation={"every_steps": 100_000},
        metrics={},
    )
    live.run = RunDir(f"{bucket.url}/runs/night")
    return live


def test_a_store_that_fails(tmp_path: Path, prometheus: str, s3: Bucket) -> None:
    """It fails the requests of a run, for data and for checkpoints, takes no checkpoint at all, or takes it slowly;
    and at last those of the monitor alone."""
    live = in_a_store(tmp_path / "user", s3)
    with FaultProxy(s3.server.port) as workers, FaultProxy(s3.server.port) as watchers:
        env = {**live.shell.env, **s3.through(watchers.endpoint).environment}
        with watching(tmp_path / "prometheus", prometheus, env, fast=SECONDS | HASTE) as found:
            shift = Shift(found, WEATHER)
            try:
                no_data = workers.fault(Answer(503), CHUNKS)
                live.launch(**s3.through(workers.endpoint).environment)
                shift.fires("ObjectStoreErrors", also=STARTS)
                no_data.off()
                live.wait(lambda: len(live.rows(0)) > 150)
                checkpoints_that_do_not_come(shift, workers)
                saves_before_a_stop(live, shift, workers)
                with shift.shows("RunsUnreadable", seconds=90):
                    watchers.refuse()
                watchers.accept()
                shift.silent()
            finally:
                live.close()


def checkpoints_that_do_not_come(shift: Shift, proxy: FaultProxy) -> None:
    with shift.shows("ObjectStoreErrors", "CheckpointStale"):
        refused = proxy.fault(Answer(503), SHARDS)
    refused.off()
    with shift.shows("CheckpointFailing", also=("CheckpointStale", "ObjectStoreErrors")):
        denied = proxy.fault(Answer(403, "AccessDenied"), SHARDS)
    denied.off()
    shift.silent()


def saves_before_a_stop(live: Live, shift: Shift, proxy: FaultProxy) -> None:
    """A run is preempted while its store is slow, goes on, and is preempted again when it is not."""
    preempted = partial(preempt, live)
    with shift.shows("PreemptSaveSlow", also=("CheckpointStale",)):
        preempted(0, proxy, Slow(up=400_000))
    preempted(1, proxy, None)
    shift.silent()


def preempt(live: Live, attempt: int, proxy: FaultProxy, fault: Fault | None) -> None:
    """Until the next attempt trains."""
    rule = proxy.fault(fault, SHARDS) if fault is not None else None
    os.kill(live.run.job(attempt).pid, signal.SIGUSR1)
    live.wait(lambda: live.run.outcome(attempt) is not None)
    if rule is not None:
        rule.off()
    live.wait(lambda: attempt + 1 in live.run.attempts() and len(live.rows(attempt + 1)) > 60)


# -- a scheduler -----------------------------------------------------------------------------------------------------
LIMIT, NOTICE = 44, 12


def on_slurm(root: Path, slurm: FakeSlurm) -> Live:
    data = write_data(str(root / "data"))
    live = Live(
        root / "user",
        code="own.py",
        data={**RECIPE["data"], "source": data.train[0].folder, "validation": data.validation[0].folder},
        checkpoint={"every_steps": 100_000},
        resources={"nproc_per_node": 1, "max_failures": 2},
        validation={"every_steps": 100_000},
        metrics={},
    )
    (live.shell.here / "own.py").write_text(HANGS.format(here=str(live.shell.here)))
    write_cluster(live.shell, slurm)
    return live


def write_cluster(shell: Shell, slurm: FakeSlurm) -> None:
    cluster = {
        "name": "site",
        "scheduler": "slurm",
        "node": {"cpus": 2},
        "slurm": {"partition": "spot", "notice_seconds": NOTICE},
        "environment": {"SLURM_CONF": slurm.env["SLURM_CONF"]},
        "storage": str(shell.here / "runs"),
    }
    folder = Path(shell.env["XDG_CONFIG_HOME"]) / "launchyard/clusters"
    folder.mkdir(parents=True)
    (folder / "site.yaml").write_text(yaml.safe_dump(cluster))


def test_a_queue_and_a_time_limit(tmp_path: Path, prometheus: str, slurm: FakeSlurm) -> None:
    """Commands of SLURM that are stand-ins, real agents and workers. A job waits, its controller is away meanwhile; the
    run leaves its first job in time, and hangs in the second."""
    slurm.real_agents(real_workers=True)
    slurm.hold("Priority")
    slurm.limit(LIMIT)
    live = on_slurm(tmp_path, slurm)
    with watching(tmp_path / "prometheus", prometheus, live.shell.env, fast=SECONDS) as found:
        shift = Shift(found, WEATHER)
        try:
            words = ("seen.yaml", "--cluster", "site", "--run-url", live.run.url, "--detach")
            done = live.shell(*words, timeout=120)
            assert done.returncode == 0, done.stderr
            a_job_that_waits(shift, slurm)
            a_time_limit(live, shift)
            assert live.shell("cancel", live.run.url, timeout=120).returncode == 0
            shift.silent()
        finally:
            live.close()


def a_job_that_waits(shift: Shift, slurm: FakeSlurm) -> None:
    """A run of which nothing is known does not wait, and one that runs does neither."""
    (job,) = slurm.jobs()
    with shift.shows("RunWaits"):
        pass
    slurm.controller_away()
    shift.fires("RunUnknown", also=("RunWaits",))
    shift.silent(but=("RunUnknown",))
    slurm.work_again()
    slurm.start(job)
    shift.silent()


def a_time_limit(live: Live, shift: Shift) -> None:
    """The first job is left in time, unsaved since its start: no alarm from there to the first steps of the second."""
    since = time.time()
    live.wait(lambda: 1 in live.run.attempts() and len(live.rows(1)) > 5, 120)
    ended = live.run.outcome(0)
    assert ended is not None and ended.reason == "time limit"
    fired = shift.prometheus.over('ALERTS{alertstate="firing"}', since, time.time())
    assert {one["metric"]["alertname"] for one in fired} <= ALWAYS | WEATHER | {*STARTS}
    shift.silent()
    with Switch(live.shell.here / "hang").on():
        shift.fires("TimeLimitNearUnsaved", also=STARTS, seconds=90)
    shift.silent()


# -- what this machine cannot have -----------------------------------------------------------------------------------
@pytest.fixture
def registry_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell(tmp_path / "user")
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, shell.env[name])
    return shell


def test_a_device_that_is_nearly_full(tmp_path: Path, prometheus: str, registry_of_its_own: Shell) -> None:
    """Not a real run: the memory of this machine cannot be taken, and there is no GPU. The exporter is a worker's, in a
    run directory that is made up, and tells of a device of 80 GB."""
    made = Made(tmp_path, clock=time.time() - 60)
    made.begin(alive=True)
    exporter = Exporter(rank=0, host="127.0.0.1")
    try:
        assert exporter.url is not None
        made.listen(int(exporter.url.split(":")[-1].partition("/")[0]))
        tell: Callable[..., None] = partial(exporter.set, "trainer_memory_reserved_bytes")
        exporter.set("trainer_memory_capacity_bytes", 80e9)
        tell(60e9)
        with watching(tmp_path / "prometheus", prometheus, registry_of_its_own.env, fast=SECONDS) as found:
            shift = Shift(found)
            found.wait(lambda: found.value("trainer_memory_reserved_bytes"))
            with shift.shows("MemoryNearLimit"):
                tell(78e9)
            tell(60e9)
            shift.silent()
    finally:
        exporter.close()
