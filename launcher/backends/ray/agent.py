"""The process that an actor starts on each node of a run: its agent, which stays while the run has the node. Its
argument is the URL of the run; which node it is, its actor knows.
"""

from __future__ import annotations

import argparse
import sys

from launchyard.launcher.agent.fleet.stays import myself, stay
from launchyard.launcher.agent.signals import Signals
from launchyard.launcher.agent.start.torchrun_process import WORKER


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__name__}", description="The agent of one node of a run.")
    parser.add_argument("run_url")
    parser.add_argument("--place", required=True, help="the node's name in messages, unlike that of any other")
    parser.add_argument("--number", type=int, required=True, help="of the bundle that it has")
    parser.add_argument("--host", required=True, help="where other nodes reach it")
    parser.add_argument("--worker-module", default=WORKER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv[1:])
    signals = Signals()
    signals.install()
    who = myself(options.place, options.number, options.host)
    return stay(options.run_url, who, signals, worker_module=options.worker_module)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
