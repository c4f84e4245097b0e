"""Fixtures for every test."""

from collections.abc import Iterator

import pytest

from tests.real_ray import RealRay, real_ray


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RealRay]:
    """A real Ray head for the whole session; give each job an id of its own."""
    with real_ray() as ray:
        yield ray
