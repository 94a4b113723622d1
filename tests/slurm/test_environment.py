"""A run on SLURM from a shell in which every variable is set that a program below it reads for itself."""

from __future__ import annotations

import pytest

from tests.slurm.runs import FOREVER, Site
from tests.support.foreign_environment import FOREIGN, OF_PYTHON_TOO

pytestmark = pytest.mark.slurm


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
    for rank, seen in enumerate(workers):
        assert not {name for name, value in FOREIGN.items() if seen.get(name) == value}
        assert (seen["RANK"], seen["WORLD_SIZE"], seen["OF_THE_PLAN"]) == (str(rank), "2", "1")
        assert (seen["LC_ALL"], seen["KEPT"]) == ("C.UTF-8", "kept"), "those of the person, not of our queries"
        assert seen["SLURM_JOB_ID"] == str(run.job)
    place.ok("stop", run.run_id)
    assert run.outcome().outcome == "stopped"
