"""`OpenClusters`: what it shares between runs, what it lets the sweep ask, and what it closes."""

from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from prefect_ray_worker.clusters.existing import cluster_at
from prefect_ray_worker.clusters.open import OpenCluster, OpenClusters
from prefect_ray_worker.clusters.poller import Seen
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.tokens import TokenSource
from tests.fake_ray import FakeRay
from tests.unit.clusters.test_poller import INTERVAL, news_of
from tests.waiting import wait_until


async def test_a_cluster_that_is_closed_leaves_no_series_behind(ray: FakeRay) -> None:
    def series() -> int:
        samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
        return sum(sample.labels.get("address") == ray.address for sample in samples)

    ray.add_job("j")
    async with OpenClusters(interval=INTERVAL) as clusters:
        older, newer = [
            await clusters.get(cluster_at(Connection(ray.address, TokenSource(literal=token))))
            for token in "ab"
        ]
        with newer.poller.watch("j") as watch:
            await news_of(watch, Seen)
        await wait_until(lambda: series() > 1, description="a poll is counted")
        await clusters.close_idle(older.ref, seconds=0.0, spared=newer)
        assert series() > 1
        await clusters.close_idle(older.ref, seconds=0.0, spared=None)
        assert series() == 0


async def test_equal_connections_share_a_poll_and_others_do_not(ray: FakeRay) -> None:
    async with OpenClusters(interval=INTERVAL) as clusters:
        first = await clusters.get(cluster_at(Connection(ray.address)))
        assert await clusters.get(cluster_at(Connection(ray.address))) is first
        other = await clusters.get(cluster_at(Connection(ray.address, TokenSource(literal="t"))))
        assert other is not first


async def test_a_cluster_that_goes_with_its_run_is_not_swept_of_records(ray: FakeRay) -> None:
    """With a thousand of them, a list of each went through the API server every minute."""
    async with OpenClusters(interval=INTERVAL) as clusters:
        lasting = await clusters.get(cluster_at(Connection(ray.address)))
        made_for_one = replace(
            cluster_at(Connection(ray.address, TokenSource(literal="t"))), is_for_one_run=True
        )
        await clusters.get(made_for_one)
        assert clusters.to_sweep == {lasting.ref: [lasting]}


async def test_only_what_nothing_uses_is_closed(ray: FakeRay) -> None:
    """Each renewed token left a client, a task and a list of all jobs every minute behind."""

    async def opened(token: str) -> OpenCluster:
        return await clusters.get(cluster_at(Connection(ray.address, TokenSource(literal=token))))

    async def rest() -> list[OpenCluster]:
        await clusters.close_idle(used.ref, seconds=0.0, spared=spared)
        return clusters.to_sweep[used.ref]

    async with OpenClusters(interval=INTERVAL) as clusters:
        used, watched, spared, idle = [await opened(token) for token in "abcd"]
        with used.use.going_on(), watched.poller.watch("j"):
            await clusters.close_idle(used.ref, seconds=60.0, spared=None)
            assert clusters.to_sweep == {used.ref: [idle, spared, watched, used]}
            assert await rest() == [spared, watched, used]
            with pytest.raises(RuntimeError, match="context manager"):
                await idle.client.version()
            assert await opened("a") is used
            assert await rest() == [used, spared, watched], "the last used first"
        assert await rest() == [spared]
