"""The cluster of these tests: one a test process, as it was at the start before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import SlurmCluster, has_slurm, running_cluster


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
