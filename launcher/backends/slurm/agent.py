"""The process that srun starts on each node of a job: its agent, which stays while the job lives. Its argument is the
URL of the run; where the owner listens, and the job's secret, come through the environment.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

from launchyard.errors import EXIT_DONE, EXIT_FAILED
from launchyard.host.environment import HUB, HUB_SECRET, REPLACED, variable
from launchyard.host.processes import descendants, end_all, is_alive, started_at, wait_until
from launchyard.launcher.agent.fleet.agent import Agent
from launchyard.launcher.agent.fleet.link import Link, Who
from launchyard.launcher.agent.fleet.resident import ORPHAN_SECONDS, Resident
from launchyard.launcher.agent.node import adopt_retry_budget
from launchyard.launcher.agent.signals import Signals, log_line
from launchyard.launcher.agent.start.torchrun_process import WORKER
from launchyard.run.rundir import RunDir


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__name__}", description="The agent of one node of a job.")
    parser.add_argument("run_url")
    parser.add_argument("--worker-module", default=WORKER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv[1:])
    signals = Signals(term_is_notice=True)
    signals.install()
    address = variable(HUB)
    secret = variable(HUB_SECRET)
    if not address or not secret:
        print(f"error: {HUB} and {HUB_SECRET} are not set; the owner of a run starts its agents", file=sys.stderr)
        return EXIT_FAILED
    run = RunDir(options.run_url)
    adopt_retry_budget(run)
    link = Link(address, secret, who_here())
    agent = Agent(signals)
    try:
        if _takes_its_place(link):
            Resident(run, agent, link, signals, options.worker_module).stay()
    finally:
        agent.close()
        link.close()
    return EXIT_DONE


def who_here() -> Who:
    """By SLURM's name of the node, and its place among the nodes of the step."""
    pid = os.getpid()
    return Who(
        place=variable("SLURMD_NODENAME") or socket.gethostname(),
        number=int(variable("SLURM_NODEID") or "0"),
        host=socket.gethostname(),
        pid=pid,
        started=started_at(pid) or 0.0,
    )


def _takes_its_place(link: Link) -> bool:
    """Ends the agent of this node that the owner has given up, and its workers. Returns False if it is back."""
    replaced = variable(REPLACED)
    if replaced is None:
        return True
    wait_until(lambda: link.order is not None, seconds=ORPHAN_SECONDS)
    if link.order is None or link.order.leave:
        return False
    pid, started = replaced.split(":")
    if is_alive(int(pid), float(started)):
        log_line(f"process {pid}, the agent of this node that its owner has given up, is ended")
        end_all(descendants(int(pid)))
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv))
