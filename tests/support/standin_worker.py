"""A worker without torch that keeps the contract between workers and launcher: for tests of the launcher's side.

LAUNCHYARD_STANDIN holds JSON: steps, step_seconds, and at which step of which attempt something goes wrong.
Rank 0 works; the other ranks wait for it.
"""

import gc
import json
import os
import signal
import sys
import time
from typing import Any

from launchyard.host.processes import die_with_parent
from launchyard.run.append import Appender
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.training.distributed import read_world


def main() -> int:
    run, world = RunDir(sys.argv[1]), read_world()
    die_with_parent()
    plan = json.loads(os.environ.get("LAUNCHYARD_STANDIN", "{}"))
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    folder = run.attempt_dir(world.attempt)
    os.makedirs(run.path(folder, "logs"), exist_ok=True)
    log = os.open(run.path(folder, "logs", f"rank-{world.rank:05d}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    print(f"hello from rank {world.rank}", flush=True)
    assert world.scratch is not None
    collector = {"collects": gc.isenabled(), "settled": gc.get_freeze_count() > 0}
    run.write_json(f"{folder}/pids/rank-{world.rank}.json", {"pid": os.getpid(), **collector})
    if world.rank != 0:
        while not os.path.exists(os.path.join(world.scratch, "done")):
            time.sleep(0.02)
        return 0
    code = lead(run, world, plan)
    with open(os.path.join(world.scratch, "done"), "w"):
        return code


def lead(run: RunDir, world: Any, plan: dict[str, Any]) -> int:
    """Rank 0: steps, rows, checkpoints, and the outcome."""
    folder = run.attempt_dir(world.attempt)
    events = Appender(run, f"{folder}/events")
    rows = Appender(run, f"metrics/steps-{world.attempt:04d}")
    steps, seconds = plan.get("steps", 1000), plan.get("step_seconds", 0.02)
    faults = plan.get("faults", {}).get(str(world.attempt), {})
    state = newest(run)
    events.add({"event": "process started", "time": time.time()})
    if faults.get("silent"):  # never gets anywhere, never stops
        while True:
            time.sleep(1)
    events.add({"event": "started", "step": state, "resumed": state > 0, "time": time.time()})
    while state < steps:
        reason = stop_reason(world.scratch)
        if reason and not plan.get("deaf"):
            events.add({"event": "stopping", "step": state, "reason": reason, "time": time.time()})
            save(run, events, state, world, "temporary")
            return end(run, events, world, "stopped", reason, state)
        if faults.get("error_at") == state:
            return fail(run, world, state, faults)
        if faults.get("quit_at") == state:
            os._exit(0)
        if faults.get("kill_at") == state:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(seconds)
        state += 1
        rows.add({
            "step": state, "loss": 5.0 / (1 + state / 10), "grad_norm": 1.0, "lr": 1e-3, "tokens_seen": 64 * state,
            "tokens_per_second": 64 / seconds, "step_seconds": seconds, "data_wait_seconds": 0.0,
            "data_hash": f"{state:016x}", "attempt": world.attempt, "time": time.time(),
        })  # fmt: skip
        if plan.get("save_every") and state % plan["save_every"] == 0:
            save(run, events, state, world, "permanent")
    save(run, events, state, world, "permanent")
    code = end(run, events, world, "completed", "done", state)
    while plan.get("linger"):
        time.sleep(1)
    return code


def newest(run: RunDir) -> int:
    names = [n for n in run.listdir("checkpoints") if run.exists(f"checkpoints/{n}/manifest.json")]
    return int(names[-1][5:]) if names else 0


def save(run: RunDir, events: Appender, step: int, world: Any, kind: str) -> None:
    if step == 0 or newest(run) == step:
        return
    run.write_json(
        f"{run.checkpoint_dir(step)}/manifest.json",
        {"step": step, "attempt": world.attempt, "world_size": world.world_size, "kind": kind, "created": time.time(),
         "train_state": {"step": step}, "model": {}, "data_digest": "", "recipe_hash": "", "versions": {}, "files": {},
         "tensors": {}},
    )  # fmt: skip
    events.add({"event": "saved", "step": step, "kind": kind, "seconds": 0.01, "time": time.time()})


def end(run: RunDir, events: Appender, world: Any, outcome: Any, reason: str, step: int) -> int:
    events.add({"event": "finished", "step": step, "time": time.time()})
    run.write_outcome(
        OutcomeRecord(outcome=outcome, reason=reason, message=f"{step} steps", attempt=world.attempt, step=step,
                      checkpoint=run.checkpoint_dir(step) if step else None, time=time.time())
    )  # fmt: skip
    return 0


def fail(run: RunDir, world: Any, step: int, faults: dict[str, Any]) -> int:
    record = {"rank": 0, "host": world.host, "type": faults.get("type", "RuntimeError"), "message": "it broke\nbadly",
              "traceback": "", "step": step, "time": time.time(), "fatal": faults.get("fatal", False)}  # fmt: skip
    run.write_error(world.attempt, 0, record)
    return 1


def stop_reason(scratch: str) -> str | None:
    try:
        with open(os.path.join(scratch, "stop")) as file:
            return str(json.load(file)["reason"])
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
