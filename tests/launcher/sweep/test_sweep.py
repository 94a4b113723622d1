"""A sweep from its words to its table: planned as a whole, submitted once, and gone on with after any end."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from typing import Any

import pytest
import yaml

from launchyard.launcher.backends.hardware import Gpu, HostFacts
from launchyard.launcher.backends.local import backend
from launchyard.launcher.cli.main import main
from launchyard.launcher.runs.registry import known_ids, register
from launchyard.launcher.submit import launch
from launchyard.launcher.sweep import submit
from launchyard.launcher.sweep.record import Sweep, known_sweeps, need_sweep, submitting
from launchyard.model.weights.hf_export import save_hf
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from tests.launcher.sweep.conftest import FAILS, ShortRuns
from tests.support.fake_slurm import FakeSlurm
from tests.support.small_runs import VOCAB
from tests.support.store import Bucket
from tests.support.tiny_models import neox, random_model, weights_of
from tests.support.typed import RECIPE, Place

AXES = ("lr=[1e-3,3e-3]", "train.seed=[1,2]")
VALUES = [(1e-3, 1), (1e-3, 2), (3e-3, 1), (3e-3, 2)]


def sweep(place: Place, *words: str, code: int = 0) -> str:
    return place.ok("sweep", "tiny.yaml", "--cluster", "site", *words, code=code)


def newest() -> Sweep:
    return known_sweeps()[-1].open()


def runs(found: Sweep) -> list[RunDir]:
    return [found.run_of(point) for point in found.points]


def status(place: Place) -> dict[str, Any]:
    return dict(json.loads(place.ok("status", newest().sweep_id, "--json")))


def queued(slurm: FakeSlurm) -> list[str]:
    """Names of the jobs that wait or run, in the order of their ids."""
    jobs = [slurm.job(job_id) for job_id in slurm.jobs()]
    return [job["name"] for job in jobs if job["state"] in ("PENDING", "RUNNING")]


# -- planned as a whole ------------------------------------------------------------------------------------------------
def test_one_bad_point_and_nothing_is_made(here: Place) -> None:
    before = here.files()
    said = sweep(here, "lr=[1e-3,-1,0]", "model.n_heads=[4,5]", "train.device=[cpu]", "nonsense.key=1", code=2)
    assert here.files() == before and known_sweeps() == [] and known_ids() == []
    assert "error: every point: tiny.yaml:1: nonsense: unknown key" in said
    assert "error: points 3 and 4: optimizer.lr=-1 on the command line: optimizer.lr: must be a number above 0" in said
    assert "error: points 5 and 6: optimizer.lr=0 on the command line" in said
    assert "points 2, 4 and 6" not in said, "what is wrong with the model is found once its keys are right"
    said = sweep(here, "lr=[1e-3,2e-3]", "model.n_heads=[4,5]", code=2)
    assert "error: points 2 and 4: " in said and "n_heads" in said and here.files() == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "nothing varies, so this is one run"),
        (("lr=log:1e-5..1e-3",), "say how often with --random N"),
        (("lr=[1,1]",), "points 1 and 2 are the same: optimizer.lr=1"),
        (("name=[a,b]",), "a sweep numbers its runs"),
        (("--seed", "1", "lr=[1,2]"), "--seed is that of --random N"),
        (("--file", "x.csv", "lr=[1,2]"), "--file holds all points"),
    ],
)
def test_what_is_no_sweep_is_refused(words: tuple[str, ...], told: str, here: Place) -> None:
    assert told in sweep(here, *words, code=2)


def test_a_dry_run_shows_all_plans_and_makes_nothing(here: Place) -> None:
    before = here.files()
    said = sweep(here, *AXES, "--dry-run")
    head, *rows = said.splitlines()
    assert head.split()[:3] == ["POINT", "lr", "seed"] and here.files() == before and known_sweeps() == []
    assert [tuple(map(float, row.split()[1:3])) for row in rows[:4]] == VALUES
    told = json.loads(sweep(here, *AXES, "--dry-run", "--json"))
    for point, (lr, seed) in zip(told["points"], VALUES, strict=True):
        assert (point["recipe"]["optimizer"]["lr"], point["recipe"]["train"]["seed"]) == (lr, seed)
        assert point["plan"]["run_id"] == point["run_id"] and point["plan"]["name"] == point["name"]


def test_a_point_is_planned_as_the_recipe_alone(here: Place) -> None:
    told = json.loads(sweep(here, *AXES, "train.max_steps=7", "--dry-run", "--json"))
    for point, (lr, seed) in zip(told["points"], VALUES, strict=True):
        words = (f"optimizer.lr={lr}", f"train.seed={seed}", "train.max_steps=7", f"name={point['name']}")
        alone = json.loads(here.ok("tiny.yaml", "--cluster", "site", *words, "--dry-run", "--json"))
        assert point["recipe"] == alone["recipe"]
        ours, theirs = (json.dumps(plan) for plan in (point["plan"], alone["plan"]))
        assert ours.replace(f"{told['url']}/", f"{here.runs}/").replace(point["run_id"], "ID") == theirs.replace(
            alone["plan"]["run_id"], "ID"
        )


# -- on this machine ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at_once", [1, 2])
def test_points_run_in_their_order_and_so_many_at_a_time(
    at_once: int, here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "submit", ShortRuns(here.here, company=at_once > 1).submit)
    said = sweep(here, *AXES, "--at-once", str(at_once))
    found = newest()
    spans = [(run.job(0).created, run.outcome().time) for run in runs(found)]  # type: ignore[union-attr]
    assert spans == sorted(spans)
    overlaps = [sum(begin <= other < end for other, _ in spans) for begin, end in spans]
    assert max(overlaps) == at_once
    assert [point.overrides for point in found.points] == [
        {"optimizer.lr": lr, "train.seed": seed} for lr, seed in VALUES
    ]
    assert "4 points, 4 completed" in said and "best: point 1, 3.1000 at step 1" in said


def test_the_table_and_its_facts(here: Place) -> None:
    sweep(here, *AXES)
    said = here.ok("status", newest().sweep_id).splitlines()
    assert said[0].split() == ["POINT", "lr", "seed", "STATE", "STEP", "LOSS", "BEST", "VAL", "TOKENS/S"]
    assert said[1].split() == ["1", "0.001", "1", "completed", "2/1000", "2.0000", "3.1000", "100"]
    told = status(here)
    assert {point["state"] for point in told["points"]} == {"completed"} and not told["stopped"]
    assert [point["best_validation_loss"] for point in told["points"]] == [3.1] * 4
    assert json.loads(here.ok("status", told["points"][2]["run_id"], "--json"))["url"] == told["points"][2]["url"]
    assert here.ok("status", newest().sweep_id.rpartition("-")[2]).splitlines() == said
    assert here.ok("status", newest().url).splitlines() == said
    assert "launch sweep --resume" in here.ok("resume", newest().sweep_id, code=2)


def test_a_failed_point_stops_no_other_and_goes_on_by_resume(here: Place) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("launchyard.launcher.runs.registry._ALPHABET", "a")
        (here.here / FAILS).write_text("tiny-aaaa-2")
        said = sweep(here, *AXES, code=1)
    assert "✗ failed    tiny-aaaa-2 at step 2, loss 2: no reason; launch why tiny-aaaa-2" in said
    assert "3 completed, 1 failed" in said and "go on: launch sweep --resume tiny-aaaa" in said
    (here.here / FAILS).write_text("")
    before = [run.attempts() for run in runs(newest())]
    assert before == [[0]] * 4
    here.ok("sweep", "--resume", "tiny-aaaa")
    assert [run.attempts() for run in runs(newest())] == [[0], [0, 1], [0], [0]]
    here.ok("sweep", "--resume", "tiny-aaaa")
    assert [run.attempts() for run in runs(newest())] == [[0], [0, 1], [0], [0]], "nothing twice"


def test_only_one_process_submits_and_stop_ends_it(here: Place) -> None:
    sweep(here, *AXES)
    found = newest()
    with submitting(found):
        said = here.ok("sweep", "--resume", found.sweep_id, code=2)
    assert "another process submits its points right now" in said
    for run in runs(found)[2:]:
        os.rename(run.url, f"{run.url}.away")

    def stop() -> None:
        time.sleep(0.3)
        need_sweep(found.sweep_id)
        RunDir(found.url).write_json("stopped.json", {})

    stopper = threading.Thread(target=stop)
    stopper.start()
    here.ok("sweep", "--resume", found.sweep_id, code=1)
    stopper.join()
    told = status(here)
    assert told["stopped"] and [point["state"] for point in told["points"]][3] == "not started"
    here.ok("sweep", "--resume", found.sweep_id)
    assert {point["state"] for point in status(here)["points"]} == {"completed"} and not status(here)["stopped"]


def test_a_sweep_is_removed_with_its_runs_and_a_point_alone_can_be_made_again(here: Place) -> None:
    sweep(here, *AXES)
    found = newest()
    here.ok("rm", "--yes", found.points[1].run_id)
    assert [point["state"] for point in status(here)["points"]] == ["completed", "not started", *["completed"] * 2]
    here.ok("sweep", "--resume", found.sweep_id)
    with submitting(found):
        assert "right now" in here.ok("rm", "--yes", found.sweep_id, code=2)
    here.ok("rm", "--yes", found.sweep_id)
    assert not os.path.exists(found.url) and known_sweeps() == [] and known_ids() == []


def test_runs_at_once_have_gpus_of_their_own(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of four GPUs; a point that needs more than are free waits for its turn."""
    gpus = tuple(Gpu(name="x", memory=80 * 10**9, capability=(9, 0)) for _ in range(4))
    host = HostFacts(cpus=8, memory=64 * 10**9, gpus=gpus, python=sys.executable)
    monkeypatch.setattr(launch, "probe_hardware", lambda *_: host)
    short = ShortRuns(here.here, company=True)
    monkeypatch.setattr(backend, "submit", short.submit)
    monkeypatch.setattr(submit, "variable_of", lambda pid, name: short.environments[pid].get(name))
    words = ("train.device=cuda", "train.global_batch_size=12")
    sweep(here, "resources.nproc_per_node=[1,2,3,4]", *words, "--at-once", "3")
    jobs = [run.job(0) for run in runs(newest())]
    ends = [run.outcome().time for run in runs(newest())]  # type: ignore[union-attr]
    held = [set(short.environments[job.pid]["CUDA_VISIBLE_DEVICES"].split(",")) for job in jobs]
    assert [len(own) for own in held] == [1, 2, 3, 4]
    assert jobs[1].created < ends[0], "three GPUs are enough for two of them"
    for before, after in itertools.combinations(range(4), 2):
        assert jobs[after].created > ends[before] or not held[before] & held[after]


# -- a scheduler -------------------------------------------------------------------------------------------------------
def test_a_scheduler_gets_every_point_once(slurm: FakeSlurm, place: Place) -> None:
    slurm.hold("Priority")
    said = sweep(place, *AXES, "--json")
    told, _ = json.JSONDecoder().raw_decode(said)
    ids = [point["run_id"] for point in told["points"]]
    assert queued(slurm) == ids and known_ids() == ids
    assert [point["state"] for point in told["points"]] == ["pending"] * 4
    assert all("dependency" not in slurm.job(job)["options"] for job in slurm.jobs())
    place.ok("sweep", "--resume", told["sweep_id"])
    assert queued(slurm) == ids
    place.ok("cancel", told["sweep_id"])
    assert queued(slurm) == [] and status(place)["stopped"]
    place.ok("sweep", "--resume", told["sweep_id"])
    assert queued(slurm) == ids


@pytest.mark.parametrize("at_once", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_at_once_is_a_chain_of_jobs(at_once: int, slurm: FakeSlurm, place: Place) -> None:
    """Each waits for the end, however it comes, of the one so many points before it."""
    slurm.hold("Priority")
    sweep(place, *AXES, "--at-once", str(at_once))
    jobs = slurm.jobs()
    waits = [slurm.job(job)["options"].get("dependency") for job in jobs]
    assert waits == [None] * at_once + [f"afterany:{job}" for job in jobs[: 4 - at_once]]
    place.ok("cancel", newest().points[0].run_id)
    place.ok("sweep", "--resume", newest().sweep_id)
    again = slurm.job(slurm.jobs()[-1])
    lane = [job for job in jobs[1:] if (jobs.index(job)) % at_once == 0]
    assert again["name"] == newest().points[0].run_id
    assert again["options"].get("dependency") == (f"afterany:{lane[-1]}" if lane else None)


def test_a_job_whose_launcher_was_killed_is_taken_for_what_it_is(slurm: FakeSlurm, place: Place) -> None:
    """Between sbatch and the record of its answer."""
    slurm.hold("Priority")
    sweep(place, *AXES)
    os.unlink(runs(newest())[1].path(layout.accepted(0)))
    place.ok("sweep", "--resume", newest().sweep_id)
    assert queued(slurm) == [point.run_id for point in newest().points]
    assert {point["state"] for point in status(place)["points"]} == {"pending"}


@pytest.mark.parametrize("words", [("model.init_from=base", "lr=[1e-3,3e-3]"), ("model.init_from=[base,zzzz]",)])
def test_a_name_means_for_every_point_what_it_meant_at_the_launch(words: tuple[str, ...], here: Place) -> None:
    """Also for a point that is launched when a newer run has that name."""
    config = neox(vocab_size=VOCAB, padded_vocab_size=VOCAB)
    recipe = {key: value for key, value in RECIPE.items() if key != "model"}
    (here.here / "tiny.yaml").write_text(yaml.safe_dump({**recipe, "model": {"init_from": "base"}}))

    def weights(run_id: str) -> str:
        folder = here.here / run_id
        save_hf(weights_of(random_model(config)), config, str(folder))
        (folder / "plan.json").write_text(json.dumps({"run_id": run_id}))
        register(run_id, run_id.partition("-")[0], str(folder))
        return str(folder)

    first = weights("base-aaaa")
    other = weights("other-zzzz") if "zzzz" in words[0] else ""
    sweep(here, *words, "train.max_steps=2")
    found = newest()
    weights("base-bbbb")
    here.ok("rm", "--yes", *(point.run_id for point in found.points))
    here.ok("sweep", "--resume", found.sweep_id)
    started = [yaml.safe_load(run.read_text("recipe.yaml"))["model"]["init_from"] for run in runs(found)]
    assert started == [first, other or first]


@pytest.mark.s3
def test_a_sweep_in_an_object_store(here: Place, s3: Bucket) -> None:
    here.write_cluster(scheduler="local", storage={"url": f"{s3.url}/runs", "endpoint_url": s3.endpoint})
    before = here.files()
    sweep(here, *AXES)
    found = newest()
    assert found.url == f"{s3.url}/runs/{found.sweep_id}" and here.files() == before
    RunDir(runs(found)[3].url).remove("plan.json")  # as if its launch had been killed
    here.ok("sweep", "--resume", found.sweep_id)
    assert [point["state"] for point in status(here)["points"]] == ["completed"] * 4
    here.ok("cancel", found.sweep_id)
    assert status(here)["stopped"]
    here.ok("rm", "--yes", found.url)
    assert known_sweeps() == [] and known_ids() == []


# -- killed ------------------------------------------------------------------------------------------------------------
COPY = f"/{layout.JOB_CODE}"
CHANGES = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "subprocess.Popen")


def launched_and_killed(instant: int, folder: str, *words: str) -> int:
    """Types a command in a process that is killed before its change of that number; the number of changes it made.

    The copy of the code for a job, some hundred files, counts for nothing.
    """
    made, tell = os.pipe()
    if (pid := os.fork()) == 0:
        count = 0

        def before(event: str, details: tuple[Any, ...]) -> None:
            nonlocal count
            if event not in CHANGES or COPY in str(details[0]) or (event == "open" and not _writes(details, folder)):
                return
            count += 1
            os.write(tell, b".")
            if count == instant:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(before)
        try:
            main(words)
        finally:
            os._exit(0)
    os.close(tell)
    with os.fdopen(made, "rb") as file:
        changes = len(file.read())
    os.waitpid(pid, 0)
    return changes


def _writes(details: tuple[Any, ...], folder: str) -> bool:
    path, _, flags = details
    return isinstance(path, str) and path.startswith(folder) and bool(flags & (os.O_WRONLY | os.O_RDWR))


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 60))])
def test_killed_at_any_instant_every_point_is_submitted_once(seed: int, slurm: FakeSlurm, place: Place) -> None:
    slurm.hold("Priority")
    words = ("sweep", "tiny.yaml", "--cluster", "site", "lr=[1e-3,3e-3]", "--at-once", "1")
    folder = str(place.here.parent)
    instant = random.Random(seed).randint(1, 80)
    launched_and_killed(instant, folder, *words)
    if not known_sweeps():
        assert slurm.jobs() == [] and known_ids() == [], "nothing is submitted before it is recorded"
        return
    found = newest()
    ids = [point.run_id for point in found.points]
    assert set(queued(slurm)) <= set(ids)
    launched_and_killed(random.Random(-seed).randint(1, 60), folder, "sweep", "--resume", found.sweep_id)
    place.ok("sweep", "--resume", found.sweep_id)
    assert sorted(queued(slurm)) == ids and sorted(known_ids()) == ids
    assert {point["state"] for point in status(place)["points"]} == {"pending"}
