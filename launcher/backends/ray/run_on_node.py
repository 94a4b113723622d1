"""Runs Python with these arguments on any node of Ray, or on a certain one: `[--node-id=ID] -- ARGUMENTS…`.

The entrypoint of short jobs, for drills and doctors. Takes no resources, so that it runs beside anything.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from launchyard.launcher.backends.ray.node_actor import run_here


def main(argv: list[str]) -> int:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    parser = argparse.ArgumentParser(prog="python -m launchyard.launcher.backends.ray.run_on_node")
    parser.add_argument("--node-id")
    parser.add_argument("arguments", nargs="+")
    options = parser.parse_args(argv[1:])
    ray.init(logging_level="ERROR", log_to_driver=False)
    where: dict[str, Any] = {}
    if options.node_id:
        where["scheduling_strategy"] = NodeAffinitySchedulingStrategy(options.node_id, soft=False)
    task = ray.remote(run_here).options(num_cpus=0, max_retries=0, **where)
    code, printed = ray.get(task.remote(options.arguments))
    print(printed, end="", flush=True)
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
