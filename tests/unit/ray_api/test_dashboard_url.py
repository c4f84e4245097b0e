"""Where people find a dashboard, as opposed to where the worker does."""

import pytest
from pydantic import ValidationError

from prefect_ray_worker.config.block import RayCluster
from prefect_ray_worker.config.configuration import RayJobConfiguration

WORKERS = "http://head-svc:8265"
PEOPLES = "https://ray.example.com/research"


def block(dashboard_url: str | None = f"{PEOPLES}/") -> RayCluster:
    return RayCluster(address=WORKERS, dashboard_url=dashboard_url)


def test_links_go_where_people_can_follow_and_requests_where_the_worker_can() -> None:
    configuration = RayJobConfiguration(cluster=block())
    assert configuration.dashboard_of(WORKERS) == PEOPLES
    connection = configuration.connection()
    assert connection is not None
    assert connection.address == WORKERS


def test_address_of_another_cluster_is_not_that_of_the_block() -> None:
    """A job that was submitted before the pool was pointed elsewhere stays where it is."""
    configuration = RayJobConfiguration(cluster=block())
    assert configuration.dashboard_of("http://other:8265") == "http://other:8265"


def test_without_one_the_address_is_good_for_both() -> None:
    assert RayJobConfiguration(cluster=block(None)).dashboard_of(WORKERS) == WORKERS
    assert RayJobConfiguration().dashboard_of(WORKERS) == WORKERS


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ray.example.com", "is not the address of a Ray dashboard"),
        (f"{PEOPLES}/#/jobs", "must not have a query or a fragment"),
        ("https://me:s3cret@ray.example.com", "holds credentials"),
    ],
)
def test_url_that_makes_no_link_is_refused_by_name(url: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says) as refused:
        block(url)
    assert "dashboard_url" in str(refused.value)
    (mistake,) = refused.value.errors()
    assert "s3cret" not in mistake["msg"]
