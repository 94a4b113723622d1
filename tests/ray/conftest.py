"""The Ray of these tests: one a test process, as it was at the start before each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ray.cluster import RayCluster, running_cluster, why_not

if TYPE_CHECKING:
    from launchyard.run.rundir import RunDir
    from tests.ray.runs import Site


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    if lacks := why_not():
        pytest.skip(lacks)
    with running_cluster(nodes=4, cpus_per_node=1) as found:
        yield found


@pytest.fixture
def cluster(ray_cluster: RayCluster) -> Iterator[RayCluster]:
    """Four nodes with a CPU each, the first of them Ray's head. Jobs end with the test."""
    yield ray_cluster
    ray_cluster.settle()


@pytest.fixture
def place(tmp_path: Path, cluster: RayCluster) -> Iterator[Site]:
    """A person with a recipe and a cluster file for that Ray."""
    from tests.ray.runs import Site

    made = Site(tmp_path, cluster)  # type: ignore[arg-type]
    yield made
    made.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_cluster: RayCluster) -> Iterator[RunDir]:
    """LONG steps of the recipe with two workers of this machine, and nothing in between."""
    from tests.ray.runs import LONG, Site

    made = Site(tmp_path_factory.mktemp("undisturbed"), ray_cluster)  # type: ignore[arg-type]
    try:
        yield made.undisturbed("run", LONG)
    finally:
        made.close()
