"""A run on SLURM from its submission to its end, as the person sees it who launched it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import psutil
import pytest

from launchyard.run.rundir import RunDir
from tests.slurm.runs import FOREVER, LONG, LOSABLE, OnSite, Site, same_training
from tests.support.shell import FOREIGN, OF_PYTHON_TOO, clone_code, edit_worker

pytestmark = pytest.mark.slurm
RIGHT_SECONDS = 5.0  # in which what is shown is what is


@pytest.mark.parametrize(
    ("nodes", "workers"), [(2, 2), pytest.param(4, 2, marks=pytest.mark.slow)], ids=["2 nodes", "4 nodes"]
)
def test_a_run_is_the_same_as_on_one_machine(nodes: int, workers: int, place: Site) -> None:
    words = ["train.max_steps=30", f"resources.nproc_per_node={workers}"]
    run = place.launch("run", *words, nodes=nodes)
    assert run.outcome().outcome == "completed"
    run.nothing_left()
    same_training(run.run, place.undisturbed("here", "train.max_steps=30", workers=nodes * workers))
    plan = run.run.read_json("plan.json")
    assert (plan["nnodes"], plan["world_size"]) == (nodes, nodes * workers)
    lines = place.ok("logs", run.run_id).splitlines()
    assert {line.partition(" |")[0].strip() for line in lines} >= {f"rank {rank}" for rank in range(nodes * workers)}
    assert {event["host"] for event in hosts(run)} == {f"node{n + 1}" for n in range(nodes)}
    assert "completed all 30 steps" in run.why()
    assert run.status()["state"] == "completed"


def hosts(run: OnSite) -> list[dict[str, str]]:
    """Where each rank said that it began."""
    found = []
    for path in sorted(Path(run.run.url).glob("attempts/0000/logs/rank-*.log")):
        (line,) = (line for line in path.read_text().splitlines() if line.startswith("process started"))
        words = dict(part.split(" ", 1) for part in line.partition(": ")[2].split(", "))
        found.append(words)
    return found


def test_the_copy_runs_whatever_becomes_of_the_folder_it_was_sent_from(place: Site, tmp_path: Path) -> None:
    """Sent from a clone that is the working directory, as people do, and that is edited before the next attempt."""
    clone = clone_code(tmp_path / "clone")
    shutil.copytree(place.here, clone, dirs_exist_ok=True)
    place.env["PYTHONPATH"] = str(clone)
    other = clone_code(tmp_path / "other")
    edit_worker(other, "OTHER")
    place.write_cluster(environment={"PYTHONPATH": str(other)})
    place.here = clone
    run = place.launch("run", LONG)
    edit_worker(clone, "EDITED")
    run.steps()
    run.cluster.run("scancel", "--signal=USR1", str(run.job))
    assert run.outcome().outcome == "completed" and len(run.run.attempts()) == 2
    logs = [path.read_text() for path in Path(run.run.url).glob("attempts/*/logs/rank-*.log")]
    assert len(logs) == 4 and not any("EDITED" in log or "OTHER" in log for log in logs)


def test_a_job_gets_what_the_plan_says_and_nothing_of_the_shell(place: Site) -> None:
    place.env |= {name: value for name, value in FOREIGN.items() if name not in OF_PYTHON_TOO}
    place.env |= {"LC_ALL": "C.UTF-8", "KEPT": "kept"}
    place.write_cluster(environment={"OF_THE_PLAN": "1"})
    run = place.launch("run", FOREVER)
    run.steps()
    job = run.cluster.job(run.job)
    assert (job["Partition"], job["JobName"], job["Requeue"]) == ("spot", run.run_id, "1")
    workers = [process.environ() for process in run.workers(0)]
    assert len(workers) == 2
    assert [event["world_size"] for event in run.run.events(0) if event["event"] == "started"] == [2]
    for seen in workers:  # as their server was started; torchrun gives each its rank after the fork
        assert not {name for name, value in FOREIGN.items() if seen.get(name) == value}
        assert seen["OF_THE_PLAN"] == "1"
        assert (seen["LC_ALL"], seen["KEPT"]) == ("C.UTF-8", "kept"), "those of the person, not of our queries"
        assert seen["SLURM_JOB_ID"] == str(run.job)
    place.ok("stop", run.run_id)
    assert run.outcome().outcome == "stopped"


def test_a_run_that_waits_says_why_and_can_be_taken_back(place: Site) -> None:
    """Before it has begun: status, why, logs and stop know no attempt."""
    cluster = place.cluster
    other = cluster.sbatch("exec sleep 300", "--partition=prod", "--nodes=4", "--exclusive")
    cluster.wait_job(other, "RUNNING")
    run = place.launch("run", FOREVER)
    state = run.status()
    assert (state["state"], state["alive"], state["job_id"]) == ("pending", True, str(run.job))
    cluster.wait(lambda: "in use" in (run.status()["queue"] or "") or "priority" in run.status()["queue"], "a reason")
    assert f"waits in the queue as job {run.job}: " in run.why()
    assert "why it waits" in place.ok("logs", run.run_id, code=2)
    assert "queued already: job" in place.ok("resume", run.run_id, code=2)
    place.ok("stop", run.run_id)
    assert run.status()["state"] == "stopped"
    assert cluster.squeue(run.job) == "CANCELLED"
    assert run.run.attempts() == []
    cluster.run("scancel", str(other))
    place.ok("resume", run.run_id, "--nodes", "1", "train.max_steps=10")
    assert run.status()["state"] in ("pending", "starting")
    assert run.outcome().outcome == "completed"
    assert run.run.job(0).nnodes == 1


def test_stop_then_resume_on_another_number_of_nodes(place: Site, undisturbed: RunDir) -> None:
    run = place.launch("run", LONG)
    run.steps(5)
    place.ok("stop", run.run_id)
    run.nothing_left()
    state = run.status()
    assert (state["state"], state["reason"], state["resumable"]) == ("stopped", "stop", True)
    assert run.cluster.job(run.job)["Restarts"] == "0"
    said = json.loads(place.ok("resume", run.run_id, "--nodes", "1", "resources.nproc_per_node=2", "--json"))
    assert said["from_step"] == state["step"]
    assert run.outcome(attempt=1).outcome == "completed"
    assert run.run.job(1).nnodes == 1
    same_training(run.run, undisturbed)


ENDS = {
    "scancel": lambda run: run.cluster.run("scancel", str(run.job)),
    "cancel": lambda run: run.site.ok("cancel", run.run_id),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_is_ended_by_hand_is_over(end: str, place: Site) -> None:
    """Shown at once, resumable, not started again, and no process of it lives on any node."""
    run = place.launch("run", FOREVER)
    run.steps(25)
    ENDS[end](run)
    began = time.monotonic()
    run.wait(lambda: not run.status()["alive"], 20)
    shown = time.monotonic() - began
    state = run.status()
    assert (state["state"], state["resumable"]) == ("stopped", True), state
    run.nothing_left(1.0)
    assert not [process for process in run.cluster.processes() if process.status() != psutil.STATUS_ZOMBIE]
    assert shown < RIGHT_SECONDS + run.cluster.site.settings.kill_wait_seconds
    assert ("scancel" if end == "scancel" else "cancelled") in run.why()
    run.cluster.wait_job(run.job, "CANCELLED")
    assert run.cluster.job(run.job)["Restarts"] == "0"
    assert run.run.attempts() == [0]


@pytest.mark.parametrize(
    "kind",
    [
        "kill",
        pytest.param("preempt", marks=pytest.mark.slow),
        pytest.param("node-loss", marks=pytest.mark.slow),
        pytest.param("freeze", marks=pytest.mark.slow),
    ],
)
def test_a_drill(kind: str, place: Site) -> None:
    """What it blows is on a node; what it tells is what the run directory says."""
    run = place.launch("run", FOREVER)
    run.steps(25)
    told = json.loads(place.ok("drill", kind, run.run_id, "--json"))
    assert kind != "preempt" or told["by"].startswith("a job of partition prod, for node")
    assert (told["attempt"], told["next_attempt"]) == (0, 1)
    assert told["steps_lost"] <= (0 if kind == "preempt" else LOSABLE)
    assert told["resumed_step"] == run.started(1)
    assert (told["committed_seconds"] is not None) == (kind == "preempt")
    place.ok("cancel", run.run_id)
    run.nothing_left()


def test_a_run_after_another(place: Site) -> None:
    """It waits, also while the first is preempted, and starts when that one is completed; not if it fails."""
    first = place.launch("first", LONG)
    second = place.launch("second", "train.max_steps=5", f"after={first.run_id}", nodes=1)
    second.wait(lambda: "it waits for another job" in (second.status()["queue"] or ""), 20)
    first.steps()
    first.cluster.run("scancel", "--signal=USR1", str(first.job))
    assert first.outcome().outcome == "completed" and len(first.run.attempts()) == 2
    assert second.outcome().outcome == "completed"
    assert second.run.job(0).created > first.run.read_json("outcome.json")["time"]
    stopped = place.launch("stopped", FOREVER, nodes=1)
    waiting = place.launch("waiting", f"after={stopped.run_id}", nodes=1)
    place.ok("stop", stopped.run_id)
    waiting.wait(lambda: "a job that has failed" in (waiting.status()["queue"] or ""), 60)
    place.ok("cancel", waiting.run_id)
    refused = place.ok("tiny.yaml", "--cluster", "site", f"after={stopped.run_id}", code=2)
    assert f"{stopped.run_id} is stopped and would never be completed" in refused
    assert f"launch resume {stopped.run_id}" in refused
    done = place.ok("tiny.yaml", "--cluster", "site", f"after={first.run_id}", "--dry-run")
    assert "dependency" not in done


def test_a_sweep_of_one_at_once(place: Site) -> None:
    """Each point waits for the end of the one before it, also when that was cancelled; --resume goes on with it."""
    words = ["train.max_steps=[100000,5,6]", "--at-once", "1", "--run-url", f"{place.runs}/sweep", "--json"]
    told = json.loads(place.ok("sweep", "tiny.yaml", "--cluster", "site", "--nodes", "1", *words))
    place.urls += [point["url"] for point in told["points"]]
    first, second, third = (OnSite(place, RunDir(point["url"]), point["run_id"]) for point in told["points"])
    first.steps()
    assert "it waits for another job" in (second.status()["queue"] or "")
    place.ok("cancel", first.run_id)
    assert (second.outcome().outcome, third.outcome().outcome) == ("completed", "completed")
    ends = [json.loads(place.ok("status", run.run_id, "--json"))["since"] for run in (first, second)]
    assert second.run.job(0).created > ends[0] and third.run.job(0).created > ends[1]
    place.ok("sweep", "--resume", told["sweep_id"])
    first.steps(attempt=1)
    assert [run.run.attempts() for run in (first, second, third)] == [[0, 1], [0], [0]]
    place.ok("stop", told["sweep_id"])
    shown = json.loads(place.ok("status", told["sweep_id"], "--json"))
    assert [point["state"] for point in shown["points"]] == ["stopped", "completed", "completed"]


def test_a_new_recipe_from_a_partition_to_a_run(place: Site) -> None:
    """`launch new` finds the partition, writes a cluster file that the doctor passes, and the recipe runs there."""
    place.env |= place.cluster.env
    words = ("--data", "tokens/train", "--model", "pythia-14m", "--budget", "3steps", "--gpu-memory", "8GB", "--json")
    there = ("--cluster", "found", "--partition", "spot", "--storage", place.runs)
    found = json.loads(place.ok("new", "x", *words, *there))
    assert {one["what"]: one["level"] for one in found["findings"]}["node"] == "ok"
    assert not [one for one in found["findings"] if one["level"] == "error"]
    assert Path(found["files"][1]).name == "found.yaml" and "#SBATCH --partition=spot" in found["plan"]["script"]
    url = f"{place.runs}/x"
    place.urls.append(url)
    small = ("train.device=cpu", "train.precision=fp32", "train.global_batch_size=2", "data.seq_len=16")
    on = ("--cluster", "found", "--nodes", "1", "--run-url", url, "--follow", "train.micro_batch_size=1")
    place.ok("x.yaml", *on, *small, "resources.nproc_per_node=2", "checkpoint.export=false")
    assert [row["step"] for row in RunDir(url).rows("steps")] == [1, 2, 3]
