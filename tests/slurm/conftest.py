"""The cluster of these tests: one a test process, as it was at the start before each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.slurm.cluster import SlurmCluster, has_slurm, running_cluster

if TYPE_CHECKING:
    from launchyard.run.rundir import RunDir
    from tests.slurm.runs import Site


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    if not has_slurm():
        pytest.skip("needs slurmctld, slurmd, slurm-client, munge, and namespaces")
    with running_cluster() as found:
        yield found


@pytest.fixture
def cluster(slurm_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """Four idle nodes with two fake GPUs each, linuxproc, no accounting, quick delays. Jobs end with the test."""
    yield slurm_cluster
    slurm_cluster.settle()


@pytest.fixture
def place(tmp_path: Path, cluster: SlurmCluster) -> Iterator[Site]:
    """A person with a recipe and a cluster file for that cluster."""
    from tests.slurm.runs import Site

    made = Site(tmp_path, cluster)
    yield made
    made.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, slurm_cluster: SlurmCluster) -> Iterator[RunDir]:
    """LONG steps of the recipe with two workers of this machine, and nothing in between."""
    from tests.slurm.runs import LONG, Site

    made = Site(tmp_path_factory.mktemp("undisturbed"), slurm_cluster)
    try:
        yield made.undisturbed("run", LONG)
    finally:
        made.close()
