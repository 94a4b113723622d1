"""The process of an agent that stays: it connects to its owner, and runs parts of attempts until it may leave.

Whoever starts it says who it is; where the owner listens, and the job's secret, come through the environment. Knows no
scheduler.
"""

from __future__ import annotations

import os
import sys

from launchyard.errors import EXIT_DONE, EXIT_FAILED
from launchyard.host.environment import HUB, HUB_SECRET, REPLACED, variable
from launchyard.host.processes import descendants, end_all, is_alive, started_at, wait_until
from launchyard.launcher.agent.fleet.agent import Agent
from launchyard.launcher.agent.fleet.link import Link, Who
from launchyard.launcher.agent.fleet.resident import ORPHAN_SECONDS, Resident
from launchyard.launcher.agent.node import adopt_retry_budget
from launchyard.launcher.agent.signals import Signals, log_line
from launchyard.run.rundir import RunDir


def stay(run_url: str, who: Who, signals: Signals, *, worker_module: str) -> int:
    """The exit code of this process."""
    address = variable(HUB)
    secret = variable(HUB_SECRET)
    if not address or not secret:
        print(f"error: {HUB} and {HUB_SECRET} are not set; the owner of a run starts its agents", file=sys.stderr)
        return EXIT_FAILED
    run = RunDir(run_url)
    adopt_retry_budget(run)
    link = Link(address, secret, who)
    agent = Agent(signals)
    try:
        if _takes_its_place(link):
            Resident(run, agent, link, signals, worker_module).stay()
    finally:
        agent.close()
        link.close()
    return EXIT_DONE


def myself(place: str, number: int, host: str) -> Who:
    """This process, on the node that the scheduler calls `place`, which others reach as `host`."""
    pid = os.getpid()
    return Who(place=place, number=number, host=host, pid=pid, started=started_at(pid) or 0.0)


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
