"""The process of a job, owner of a run. Its arguments are the URL of the run and the job's file in the spool folder.

Waits for its turn, then runs one attempt after another on this machine. All that it has started dies with it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launchyard.errors import EXIT_FAILED, LaunchError
from launchyard.host.processes import wait_until
from launchyard.launcher.agent.fleet.agent import Agent
from launchyard.launcher.agent.node import adopt_retry_budget
from launchyard.launcher.agent.owner import Owner, serve
from launchyard.launcher.agent.signals import POLL_SECONDS, Signals
from launchyard.launcher.agent.start.torchrun_process import WORKER
from launchyard.launcher.agent.torchrun_watch import Node
from launchyard.launcher.backends.base import judge_job
from launchyard.launcher.backends.example.client import Spool
from launchyard.run.records import Job, OutcomeRecord, Shape, Submission
from launchyard.run.rundir import RunDir

ACCEPT_SECONDS = 60.0  # from our start until the launcher has written down that we are its job


def make_owner(
    run: RunDir, submission: Submission, spool: Spool, agent: Agent, signals: Signals, *, worker_module: str
) -> Owner:

    def wait_for_turn(goes_on: Callable[[], bool]) -> Shape | None:
        while not spool.take_turn(submission.job_id):
            if not goes_on():
                return None
            time.sleep(POLL_SECONDS)
        return submission.shape

    def run_nodes(job: Job, on_poll: Callable[[], None]) -> OutcomeRecord:
        node = Node(run, job.attempt, job.shape, worker_module=worker_module)
        return agent.run(node, on_poll=on_poll)

    owner = Owner(
        run,
        submission.backend,
        submission.job_id,
        submission.shape,
        submission.overrides,
        signals,
        run_nodes,
        judge_job,
        acquire_resources=wait_for_turn,
    )
    owner.kept_step = agent.newest_step
    return owner


def own_submission(run: RunDir, job_id: str) -> Submission:
    """Waits for the launcher's record of this job, written once the queue has the job, which is after our start."""

    def is_ours() -> bool:
        newest = run.newest_submission()
        return newest is not None and newest.job_id == job_id

    found = run.newest_submission() if wait_until(is_ours, seconds=ACCEPT_SECONDS) else None
    if found is None:
        raise LaunchError(f"{run.url}: job {job_id} not found in its submissions")
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__name__}", description="Owns a run, when its turn has come.")
    parser.add_argument("run_url")
    parser.add_argument("job", type=Path, help="its file in the spool folder")
    parser.add_argument("--worker-module", default=WORKER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv[1:])
    run = RunDir(options.run_url)
    spool = Spool(str(options.job.parent))
    job_id = options.job.stem
    adopt_retry_budget(run)
    signals = Signals()
    agent = Agent(signals)
    try:
        submission = own_submission(run, job_id)
        signals.install()
        owner = make_owner(run, submission, spool, agent, signals, worker_module=options.worker_module)
        return serve(owner, where=f"job {job_id}")
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        agent.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
