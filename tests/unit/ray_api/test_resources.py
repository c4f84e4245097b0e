"""What a cluster has and what a job asks for, read from real answers' shapes over HTTP."""

import pytest

from prefect_ray_worker.errors import ClusterUnreachable
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from prefect_ray_worker.ray_api.resources import asked_for
from prefect_ray_worker.shared.resources import Asked
from tests.fake_ray import FakeRay, Fault, Kind
from tests.fake_ray.nodes import FakeNode


async def test_free_is_found_under_names_that_ray_has_rewritten(
    ray: FakeRay, client: JobsClient
) -> None:
    total = {"CPU": 4.0, "big_local_ssd": 2.0, "object_store_memory": 10.0}
    ray.nodes = [FakeNode(total, {"CPU": 1.0, "big_local_ssd": 2.0})]
    (node,) = (await client.resources()).nodes
    assert (node.free or {})["big_local_ssd"] == 0
    assert (node.free or {})["CPU"] == 3
    assert (node.free or {})["object_store_memory"] == 10


async def test_dead_nodes_do_not_count(ray: FakeRay, client: JobsClient) -> None:
    ray.nodes = [FakeNode({"CPU": 4.0}), FakeNode({"CPU": 64.0}, state="DEAD")]
    assert (await client.resources()).total({"CPU": 1}) == {"CPU": 4}


async def test_without_a_monitor_only_totals_are_known(ray: FakeRay, client: JobsClient) -> None:
    ray.has_monitor = False
    found = await client.resources()
    assert found.total({"CPU": 1}) == {"CPU": 2}
    assert found.free({"CPU": 1}) is None


@pytest.mark.parametrize("kind", [Kind.STATUS, Kind.LOGIN_PAGE, Kind.DROP])
async def test_status_that_cannot_be_read_costs_no_more_than_that(
    ray: FakeRay, client: JobsClient, kind: Kind
) -> None:
    ray.faults.add(Fault("GET", "/api/cluster_status", kind=kind))
    assert (await client.resources()).free({"CPU": 1}) is None


async def test_nodes_that_cannot_be_read_are_an_error(ray: FakeRay, client: JobsClient) -> None:
    ray.faults.add(Fault("GET", "/api/v0/nodes", kind=Kind.DROP))
    with pytest.raises(ClusterUnreachable):
        await client.resources()


def test_what_a_submission_asks_for() -> None:
    request = JobSubmitRequest(
        entrypoint="true",
        submission_id="a",
        metadata={},
        runtime_env={
            "env_vars": {"A": "1"},
            "pip": {"packages": ["x"]},
            "py_modules": [f"gcs://_ray_pkg_{'0' * 64}.zip"],
        },
        entrypoint_num_cpus=2,
        entrypoint_num_gpus=0,
        entrypoint_memory=1024,
        entrypoint_resources={"ssd": 1},
        entrypoint_label_selector={"zone": "a"},
    )
    assert asked_for(request) == Asked(
        {"CPU": 2, "memory": 1024, "ssd": 1}, {"zone": "a"}, ("pip",)
    )


def test_a_users_own_modules_count_as_environment() -> None:
    request = JobSubmitRequest(
        entrypoint="true",
        submission_id="a",
        metadata={},
        runtime_env={"py_modules": ["gcs://_ray_pkg_0123456789abcdef.zip", "s3://bucket/mine.zip"]},
    )
    assert asked_for(request).environment == ("py_modules",)
