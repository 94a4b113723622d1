"""The entrypoint of a RayJob: launches the run that its manifest describes, or goes on with it, and sees its end.

`RECIPE CLUSTER RUN-URL`. KubeRay may start it again, on a new cluster: then the run is there, and is resumed. Exit
code 0 also for a run that somebody has stopped, which KubeRay must not begin again.
"""

from __future__ import annotations

import subprocess
import sys

from launchyard.errors import LaunchError
from launchyard.host.processes import python_argv, wait_until
from launchyard.launcher.backends.base import owner_alive
from launchyard.launcher.backends.cluster import load_cluster, reach_storage
from launchyard.run import layout
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir

_STALE_SECONDS = 600.0  # for the heartbeat of an owner whose cluster is gone to be known as stale


def main(argv: list[str]) -> int:
    _, recipe, cluster, url = argv
    reach_storage(load_cluster(cluster))
    run = RunDir(url)
    words = [recipe, "--cluster", cluster, "--run-url", url]
    if run.exists(layout.PLAN):
        if (record := run.outcome()) is not None and _is_final(record):
            print(f"{url}: {record.outcome} before: {record.message}", flush=True)
            return _code(record)
        wait_until(lambda: not owner_alive(run), seconds=_STALE_SECONDS, every=2.0)
        words = ["resume", url, "--cluster", cluster]
    code = subprocess.call([*python_argv(sys.executable), "-u", "-m", "launchyard", *words, "--follow"])
    record = run.outcome()
    return code if record is None else _code(record)


def _is_final(record: OutcomeRecord) -> bool:
    """Whether another try would be against somebody's will, or for nothing."""
    return record.outcome != "failed" or record.fatal


def _code(record: OutcomeRecord) -> int:
    return 1 if record.outcome == "failed" else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv))
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
