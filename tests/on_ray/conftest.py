"""One cluster for all tests here: a head that works, and one node."""

from collections.abc import Iterator

import pytest

from tests.on_ray.ray_cluster import RayCluster


@pytest.fixture(scope="package")
def cluster() -> Iterator[RayCluster]:
    """Two CPUs on two nodes."""
    found = RayCluster()
    found.add_node()
    yield found
    found.stop()
