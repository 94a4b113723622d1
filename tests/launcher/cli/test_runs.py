"""The commands to live with runs, as they are typed: what they print, what they refuse, their exit codes."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from launchyard.host.processes import marked, worker_rank
from launchyard.launcher.backends.local import backend
from launchyard.launcher.cli.main import main
from launchyard.launcher.runs import drill as drill_module
from launchyard.launcher.runs.drill import rehearse
from launchyard.launcher.runs.logs import log_names
from launchyard.launcher.runs.registry import register
from launchyard.launcher.runs.state import state_of
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.storage.safetensors import safetensors_header
from launchyard.storage.shards import FileEntry, Manifest, TensorEntry, TensorPiece, sealed
from tests.launcher.runs.test_find import claim, rows
from tests.support.standin import HERE, Standin, make_run

Launch = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def launch(capsys: pytest.CaptureFixture[str]) -> Launch:
    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(words)
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def live(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> Standin:
    """A registered run; whoever resumes it gets the stand-in worker too."""
    register("tiny-abcd", "tiny", standin.run.url)
    submit = functools.partial(backend.submit, worker_module="standin_worker")
    monkeypatch.setattr(backend, "submit", submit)
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("LAUNCHYARD_STANDIN", json.dumps({"save_every": 10}))
    return standin


@pytest.fixture
def over(tmp_path: Path) -> RunDir:
    """A run whose owner is dead: attempt 0 made 30 steps, attempt 1 went on from 20 to 25."""
    run = make_run(tmp_path)
    register("tiny-abcd", "tiny", run.url)
    claim(run, 0, alive=False)
    rows(run, 0, range(1, 31), start=0)
    claim(run, 1, alive=False)
    rows(run, 1, range(21, 26), start=20)
    return run


# -- a life ----------------------------------------------------------------------------------------------------------
def test_status_stop_resume_cancel(live: Standin, launch: Launch) -> None:
    live.submit(save_every=10)
    live.running(steps=12)
    code, out, _ = launch("status")
    assert code == 0 and "tiny-abcd" in out and "running" in out
    code, out, _ = launch("status", "abcd", "--json")
    assert json.loads(out)["state"] == "running" and json.loads(out)["alive"]
    code, _, err = launch("resume", "tiny")
    assert code == 2 and "is running already: attempt 0" in err

    code, _, err = launch("stop", "tiny", "nowhere")
    assert code == 2 and "nowhere" in err and live.run.stop_requested() is None, "all are found before one is asked"
    code, out, _ = launch("stop", "tiny", "abcd")
    assert code == 0 and out.count("stopped (stop), saved at step") == 1
    stopped = state_of(live.run)
    assert stopped.step == stopped.checkpoint == live.steps(0)
    code, _, err = launch("stop", "tiny")
    assert code == 2 and "not running (stopped)" in err

    code, out, _ = launch("resume", "tiny", "train.max_steps=900", "--json")
    facts = json.loads(out)
    live.pids.add(facts["job"]["pid"])
    assert code == 0 and facts["from_step"] == stopped.step and facts["job"]["attempt"] == 1
    assert facts["job"]["overrides"] == facts["overrides"] == {"train.max_steps": 900}
    live.wait(lambda: live.steps(1) > stopped.step)
    code, out, _ = launch("cancel", "tiny", "--json")
    assert code == 0 and json.loads(out)["reason"] == "cancelled"
    live.nothing_left()
    steps = [json.loads(line)["step"] for line in launch("metrics", "tiny", "--jsonl")[1].splitlines()]
    assert steps == list(range(1, max(steps) + 1)), "one row a step"


def test_several_runs_in_one_command(over: RunDir, tmp_path: Path, launch: Launch) -> None:
    (tmp_path / "other").mkdir()
    register("other-efgh", "other", make_run(tmp_path / "other", run_id="other-efgh").url)
    code, out, _ = launch("status", "other", "tiny", "--json")
    assert code == 0 and [state["run_id"] for state in json.loads(out)] == ["other-efgh", "tiny-abcd"]
    code, out, _ = launch("status", "other", "tiny")
    assert code == 0 and [line for line in out.splitlines() if not line.startswith(" ")] == ["other-efgh", "tiny-abcd"]
    code, _, err = launch("status", "other", "tiny", "--watch")
    assert code == 2 and "--watch is for one run" in err
    code, _, err = launch("cancel", "other", "tiny")
    assert code == 2 and "other-efgh is not running" in err and "tiny-abcd is not running" in err
    assert "nothing was done" not in err


@pytest.mark.parametrize("verb", ["stop", "cancel"])
def test_runs_beside_one_that_has_ended_are_left_alone_and_named(
    verb: str, live: Standin, tmp_path: Path, launch: Launch
) -> None:
    live.submit(save_every=10)
    live.running(steps=2)
    (tmp_path / "other").mkdir()
    register("other-efgh", "other", make_run(tmp_path / "other", run_id="other-efgh").url)
    code, _, err = launch(verb, "tiny", "other")
    assert code == 2 and "other-efgh is not running" in err
    assert f"nothing was done to the others: launch {verb} tiny-abcd" in err
    assert state_of(live.run).alive and live.run.stop_requested() is None


def test_a_run_that_ended_early_goes_on_only_with_another_end(tmp_path: Path, launch: Launch) -> None:
    over = make_run(tmp_path)
    register("tiny-abcd", "tiny", over.url)
    claim(over, 0, alive=False)
    why = "ended early after 25 of 1000 steps, for train.max_time 00:03 is over"
    done = OutcomeRecord(outcome="completed", reason="done", message=why, attempt=0, step=25, time=time.time())
    over.write_outcome(done)
    over.write_outcome(done, of_run=True)
    for words in ([], ["checkpoint.every_steps=3"]):
        code, _, err = launch("resume", "tiny", *words, "--dry-run")
        assert code == 2 and why in err and "early_stopping or train.max_time" in err
    for change in ("train.max_time=00:05", "early_stopping.patience=9", "train.max_steps=900"):
        _, _, err = launch("resume", "tiny", change, "--dry-run")
        assert "is complete" not in err


@pytest.mark.slow
def test_resume_follows_and_says_how_it_ended(live: Standin, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHYARD_STANDIN", json.dumps({"steps": 5}))
    code, out, _ = launch("resume", "tiny")
    live.pids.add(live.run.job(0).pid)
    assert code == 0 and "from the beginning" in out and "completed" in out
    code, _, err = launch("resume", "tiny", "train.max_steps=5")
    assert code == 2 and "has completed all its 5 steps" in err and "train.max_steps=10" in err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["preempt", "kill", "node-loss"])
def test_drill(live: Standin, kind: Any) -> None:
    live.submit(save_every=10)
    live.running(steps=15)

    def again() -> Any:
        return live.submit(save_every=10)

    drill = rehearse(live.run, kind, again=again, timeout_seconds=60)
    assert (drill.attempt, drill.next_attempt) == (0, 1)
    assert 0 < drill.ended_seconds <= drill.claimed_seconds <= drill.first_step_seconds < 30
    if kind == "preempt":
        assert drill.steps_lost == 0 and drill.agreed_seconds is not None and drill.committed_seconds is not None
    else:
        assert 0 < drill.steps_lost <= 10 and drill.resumed_step % 10 == 0
    assert any("first step again" in line for line in drill.lines())


@pytest.mark.slow
def test_what_a_drill_freezes_wakes_again(live: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent with all below it, and it takes part again."""
    monkeypatch.setattr(drill_module, "FREEZE_SECONDS", 1.0)
    live.submit(save_every=10)
    live.running(steps=15)
    job = live.run.job(0)
    worker = next(process for process in marked(live.run.url) if worker_rank(process) is not None)
    seen: list[set[str]] = []
    thread = threading.Thread(target=lambda: drill_module.freeze_agent(live.run, job))
    thread.start()
    while thread.is_alive():
        seen.append({psutil.Process(job.pid).status(), worker.status()})
        time.sleep(0.05)
    assert {psutil.STATUS_STOPPED} in seen
    live.running(steps=live.steps(0) + 5)


def test_drill_needs_a_live_run(over: RunDir, launch: Launch) -> None:
    code, _, err = launch("drill", "kill", "tiny")
    assert code == 2 and "not running" in err


# -- what a resume refuses -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "model.preset=pythia-70m",
            "model.preset: pythia-70m on the command line, but this run was made with pythia-14m",
        ),
        ("data.seq_len=32", "data.seq_len: 32"),
        ("data.source=elsewhere", "data.source"),
        ("tokenizer=other.json", "tokenizer"),
        ("train.seed=1", "train.seed: 1 on the command line, but this run was made with 0"),
        ("train.global_batch_size=8", "train.global_batch_size"),
        ("train.precision=bf16", "train.precision"),
        ("name=other", "name"),
        ("train.sed=1", "did you mean train.seed"),
        ("resources.nproc_per_node=3", "4 sequences cannot be cut evenly over 3 workers"),
        ("resources.gpus_per_node=64", "64 GPUs, but this machine has"),
        ("resources.nodes=2", "2 nodes"),
        ("nonsense", "not KEY=VALUE"),
    ],
)
def test_resume_refuses(over: RunDir, launch: Launch, change: str, said: str) -> None:
    before = sorted(path for path in Path(over.url).rglob("*"))
    code, _, err = launch("resume", "tiny", change)
    assert code == 2 and said in err
    assert "Traceback" not in err
    assert sorted(path for path in Path(over.url).rglob("*")) == before, "nothing was created"


def test_resume_names_all_that_is_wrong_at_once(over: RunDir, launch: Launch) -> None:
    code, _, err = launch("resume", "tiny", "train.seed=1", "data.seed=2", "name=x")
    assert code == 2 and err.count("error:") == 3 and "model.init_from" in err


def test_resume_refuses_to_go_back(over: RunDir, launch: Launch) -> None:
    over.write_text("checkpoints/step-00000020/manifest.json", "{}")
    code, _, err = launch("resume", "tiny", "train.max_steps=10")
    assert code == 2 and "has saved step 20 already" in err


@pytest.mark.slow
def test_overrides_accumulate(live: Standin, launch: Launch) -> None:
    launch("resume", "tiny", "--json", "optimizer.lr=0.1", "train.max_steps=800")
    live.pids.add(live.run.job(0).pid)
    live.running()
    launch("stop", "tiny")
    launch("resume", "tiny", "--json", "train.max_tokens=51200", "checkpoint.keep=2", "train.seed=0")
    live.pids.add(live.run.job(1).pid)
    assert live.run.job(1).overrides == {"optimizer.lr": 0.1, "train.max_tokens": 51200, "checkpoint.keep": 2}


# -- reading ---------------------------------------------------------------------------------------------------------
def test_metrics_take_back_what_was_done_again(over: RunDir, launch: Launch) -> None:
    code, out, _ = launch("metrics", "tiny", "--jsonl")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(row["step"], row["attempt"]) for row in found] == [(s, 0) for s in range(1, 21)] + [
        (s, 1) for s in range(21, 26)
    ]


@pytest.mark.slow
def test_metrics_for_people(live: Standin, launch: Launch) -> None:
    live.submit(steps=20)
    live.outcome()
    code, out, _ = launch("metrics", "tiny")
    assert code == 0 and "loss (nats per token)" in out and out.splitlines()[0].split()[:2] == ["step", "loss"]
    assert json.loads(launch("metrics", "tiny", "--json")[1])[-1]["step"] == 20


def test_logs_of_all_workers_with_their_origin(live: Standin, launch: Launch) -> None:
    live.submit(workers=2, faults={"0": {"error_at": 3, "fatal": True}})
    live.outcome()
    code, out, _ = launch("logs", "tiny")
    lines = out.splitlines()
    assert code == 0 and lines[0] == "first error | rank 0: RuntimeError: it broke"
    assert "rank 0 | hello from rank 0" in lines and "rank 1 | hello from rank 1" in lines
    code, out, _ = launch("logs", "tiny", "--rank", "1")
    assert [line for line in out.splitlines() if line.startswith("rank")] == ["rank 1 | hello from rank 1"]
    with open(live.run.path(log_names(live.run, 0, 0)["rank 0"]), "a") as log:
        log.write("the end\n")
    code, out, _ = launch("logs", "tiny", "--tail", "1")
    shown = [line for line in out.splitlines() if line.startswith("rank ")]
    assert shown == ["rank 0 | the end", "rank 1 | hello from rank 1"]
    code, _, err = launch("logs", "tiny", "--rank", "7")
    assert code == 2 and "there are ranks: 0, 1" in err
    code, _, err = launch("logs", "tiny", "--attempt", "3")
    assert code == 2 and "attempts 0 to 0" in err
    code, out, _ = launch("why", "tiny")
    assert code == 0 and "it broke" in out


@pytest.mark.slow
def test_logs_follow_over_attempts_until_the_end(live: Standin, launch: Launch) -> None:
    live.submit(steps=20, save_every=5, faults={"0": {"kill_at": 12}})
    code, out, _ = launch("logs", "-f", "--tail", "100", "tiny")
    assert code == 0 and out.count("rank 0 | hello from rank 0") == 2 and "--- attempt 1 ---" in out


def test_why_as_json(over: RunDir, launch: Launch) -> None:
    code, out, _ = launch("why", "tiny", "--json")
    facts = json.loads(out)
    assert code == 0 and (facts["state"], facts["reason"], facts["attempt"]) == ("lost", "owner gone", 1)


@pytest.mark.parametrize("command", [["status"], ["logs"], ["why"], ["metrics"], ["checkpoints"], ["stop"], ["resume"]])
def test_unknown_runs_are_the_users_mistake(launch: Launch, command: list[str]) -> None:
    code, _, err = launch(*command, "nothing")
    assert code == 2 and "nothing: no such run" in err


def test_status_without_runs(launch: Launch) -> None:
    code, out, _ = launch("status")
    assert code == 0 and "no runs yet" in out
    assert json.loads(launch("status", "--json")[1]) == []


# -- checkpoints -----------------------------------------------------------------------------------------------------
def save(run: RunDir, step: int, *, kind: Any = "permanent") -> Path:
    """A whole checkpoint of one small tensor; its folder."""
    import xxhash

    folder = Path(run.path(run.checkpoint_dir(step)))
    folder.mkdir(parents=True)
    header, body = safetensors_header({"w@0": ("F32", (4,))}), bytes(range(16))
    (folder / "0.safetensors").write_bytes(header + body)
    piece = TensorPiece(offsets=(0,), sizes=(4,), file="0.safetensors", start=len(header), length=16,
                  xxh3=xxhash.xxh3_64_hexdigest(body))  # fmt: skip
    entry = FileEntry(bytes=len(header) + 16, header_bytes=len(header), header_xxh3=xxhash.xxh3_64_hexdigest(header))
    manifest = Manifest(
        step=step, attempt=0, world_size=2, kind=kind, created=time.time(), train_state={}, model={}, data_digest="d",
        recipe_hash="r", versions={}, files={"0.safetensors": entry},
        tensors={"w": TensorEntry(dtype="F32", shape=(4,), pieces=(piece,))},
    )  # fmt: skip
    (folder / "manifest.json").write_text(sealed(manifest))
    return folder


def test_checkpoints_listed_and_verified(over: RunDir, launch: Launch) -> None:
    assert "no checkpoint yet" in launch("checkpoints", "tiny")[1]
    for step in (10, 20, 30, 40):
        save(over, step)
    (Path(over.path(over.checkpoint_dir(50)))).mkdir()  # killed before its manifest: does not exist
    code, out, _ = launch("checkpoints", "tiny", "--verify")
    assert code == 0 and out.count("whole") == 4 and "50" not in out.split()

    flipped, cut, gone = (Path(over.path(over.checkpoint_dir(step)), "0.safetensors") for step in (20, 30, 40))
    raw = bytearray(flipped.read_bytes())
    raw[-1] ^= 1
    flipped.write_bytes(raw)
    cut.write_bytes(cut.read_bytes()[:-3])
    gone.unlink()
    code, out, err = launch("checkpoints", "tiny", "--verify")
    assert code == 1 and out.count("whole") == 1 and out.count("damaged") == 3
    for path in (flipped, cut, gone):
        assert str(path) in err
    code, out, _ = launch("checkpoints", "tiny", "--verify", "--json")
    assert code == 1 and [bool(entry["faults"]) for entry in json.loads(out)] == [False, True, True, True]
    assert launch("checkpoints", "tiny")[0] == 0, "without --verify nothing is read"


def test_an_unreadable_manifest_is_a_fault(over: RunDir, launch: Launch) -> None:
    (save(over, 10) / "manifest.json").write_text("{")
    code, out, err = launch("checkpoints", "tiny")
    assert code == 1 and "unreadable" in out and "manifest.json" in err


@pytest.mark.slow
def test_stop_without_waiting(live: Standin, launch: Launch) -> None:
    live.submit()
    live.running()
    code, out, _ = launch("stop", "tiny", "--no-wait")
    assert code == 0 and "was asked" in out
    assert live.outcome().reason == "stop"
