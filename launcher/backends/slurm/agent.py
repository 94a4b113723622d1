"""The process that srun starts on each node of a job: its agent, which stays while the job lives. Its argument is the
URL of the run.
"""

from __future__ import annotations

import argparse
import socket
import sys

from launchyard.host.environment import variable
from launchyard.launcher.agent.fleet.link import Who
from launchyard.launcher.agent.fleet.stays import myself, stay
from launchyard.launcher.agent.signals import Signals
from launchyard.launcher.agent.start.torchrun_process import WORKER


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__name__}", description="The agent of one node of a job.")
    parser.add_argument("run_url")
    parser.add_argument("--worker-module", default=WORKER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv[1:])
    signals = Signals(term_is_notice=True)
    signals.install()
    return stay(options.run_url, who_here(), signals, worker_module=options.worker_module)


def who_here() -> Who:
    """By SLURM's name of the node, and its place among the nodes of the step."""
    host = socket.gethostname()
    return myself(variable("SLURMD_NODENAME") or host, int(variable("SLURM_NODEID") or "0"), host)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
