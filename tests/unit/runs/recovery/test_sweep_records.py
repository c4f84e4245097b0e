"""Which clusters the sweep of records asks, with which credentials, and which it lets go of."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from prefect_ray_worker.clusters.existing import cluster_at
from prefect_ray_worker.clusters.open import OpenCluster, OpenClusters
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.tokens import TokenSource
from prefect_ray_worker.runs.recovery import sweep
from prefect_ray_worker.runs.recovery.sweep import Sweeper
from prefect_ray_worker.shared.ids import DELETE_AFTER_KEY
from tests.fake_ray import FakeRay

POOL, RUN = UUID(int=1), UUID(int=2)
JOB = {"prefect.io/flow-run-id": str(RUN), "prefect.io/work-pool-id": str(POOL)}


class Prefect:
    """Stands for Prefect, which has no runs any more."""

    async def online_workers(self, _: str) -> frozenset[str]:
        return frozenset()

    async def some(self, _: object) -> dict[UUID, Any]:
        return {}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_IDLE_SECONDS", 0.0)


@asynccontextmanager
async def sweeping() -> AsyncIterator[tuple[OpenClusters, Sweeper]]:
    unused: Any = None
    pool = cast("Any", SimpleNamespace(id=POOL, name="pool"))
    prefect = cast("Any", Prefect())
    rest = (unused, unused, unused)
    async with OpenClusters(interval=1) as clusters:
        yield (
            clusters,
            Sweeper("me", lambda: pool, unused, clusters, prefect, *rest, interval=60),
        )


async def opened(clusters: OpenClusters, ray: FakeRay, token: str) -> OpenCluster:
    return await clusters.get(cluster_at(Connection(ray.address, TokenSource(literal=token))))


async def test_a_cluster_is_asked_once_whatever_the_number_of_its_tokens(ray: FakeRay) -> None:
    """A token that is renewed each hour: after two days, 48 lists of all jobs every minute."""
    async with sweeping() as (clusters, sweeper):
        ray.add_job("goes-on", metadata=JOB)
        for number in range(3):
            newest = await opened(clusters, ray, f"t{number}")
        before = len(ray.requests)
        await sweeper.sweep_records()
        assert clusters.to_sweep == {newest.ref: [newest]}
        assert len(ray.requests) - before <= 2


async def test_the_credentials_that_are_taken_stay(ray: FakeRay) -> None:
    async with sweeping() as (clusters, sweeper):
        ray.add_job("kept-for-a-day", metadata={**JOB, DELETE_AFTER_KEY: "86400"}).set("SUCCEEDED")
        ray.token = "right"
        right = await opened(clusters, ray, "right")
        await opened(clusters, ray, "wrong")
        await sweeper.sweep_records()
        assert clusters.to_sweep == {right.ref: [right]}


@pytest.mark.parametrize("keeps", [True, False])
async def test_a_cluster_stays_open_for_as_long_as_it_has_something_to_sweep(
    ray: FakeRay, keeps: bool
) -> None:
    async with sweeping() as (clusters, sweeper):
        more = {DELETE_AFTER_KEY: "86400"} if keeps else {}
        ray.add_job("ended", metadata={**JOB, **more}).set("SUCCEEDED")
        await opened(clusters, ray, "t")
        await sweeper.sweep_records()
        assert bool(clusters.to_sweep) is keeps


@pytest.mark.parametrize("since", [0.0, 3600.0])
async def test_an_address_that_has_gone_is_asked_for_an_hour(since: float) -> None:
    async with sweeping() as (clusters, sweeper):
        cluster = await clusters.get(cluster_at(Connection("http://127.0.0.1:1")))
        cluster.use._since -= since
        await sweeper.sweep_records()
        assert bool(clusters.to_sweep) is (since == 0)
