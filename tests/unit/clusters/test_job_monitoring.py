"""After a head's restart, one request resumes its job monitoring and starts no job."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from prefect_ray_worker.clusters.existing import cluster_at
from prefect_ray_worker.clusters.open import OpenCluster, OpenClusters
from prefect_ray_worker.clusters.poller import WAKE_JOB_ID, Seen, Unreachable
from prefect_ray_worker.ray_api.connection import Connection
from tests.fake_ray import FakeRay, Fault, Kind
from tests.unit.clusters.test_poller import news_of
from tests.waiting import wait_until

INTERVAL = 0.1


@asynccontextmanager
async def watching(ray: FakeRay) -> AsyncIterator[OpenCluster]:
    async with OpenClusters(interval=INTERVAL) as clusters:
        yield await clusters.get(cluster_at(Connection(ray.address)))


def requests_sent(ray: FakeRay) -> int:
    return ray.requests.number_of("POST")


async def test_monitoring_is_resumed_once_after_a_head_restart(ray: FakeRay) -> None:
    job = ray.add_job("j")
    async with watching(ray) as cluster:
        with cluster.poller.watch("j") as watch:
            await news_of(watch, Seen)
            await anyio.sleep(3 * INTERVAL)
            assert requests_sent(ray) == 0, "nothing has happened"
            await ray.stop_listening()
            await news_of(watch, Unreachable)
            await ray.listen_again()
            await wait_until(lambda: requests_sent(ray), timeout=10, description="a submission")
            await anyio.sleep(5 * INTERVAL)
            assert requests_sent(ray) == 1
    assert ray.jobs.keys() == {"j", WAKE_JOB_ID}
    assert job.stop_requests == 0


async def test_no_job_ever_comes_up_under_the_id_of_a_run(ray: FakeRay) -> None:
    """`true` was submitted as the job of a run that was settled, if that job went in between."""
    ray.add_job("j")
    async with watching(ray) as cluster:
        with cluster.poller.watch("j") as watch:
            await news_of(watch, Seen)
            ray.faults.add(Fault("POST", "/api/jobs/$", Kind.HANG, times=1))
            cluster.poller.head_may_have_restarted()
            await wait_until(lambda: requests_sent(ray), timeout=10, description="a submission")
            del ray.jobs["j"]
            ray.faults.release()
            await anyio.sleep(5 * INTERVAL)
    assert "j" not in ray.jobs


async def test_a_failed_resumption_is_tried_again(ray: FakeRay) -> None:
    """As when the head's agent is not there yet: reading works before."""
    ray.add_job("j")
    ray.faults.add(Fault("POST", "", Kind.STATUS, times=2, status=500, body="No available agent"))
    async with watching(ray) as cluster:
        cluster.poller.head_may_have_restarted()
        with cluster.poller.watch("j"):
            await wait_until(
                lambda: requests_sent(ray) == 3, timeout=10, description="three submissions"
            )
            await anyio.sleep(5 * INTERVAL)
            assert requests_sent(ray) == 3


async def test_no_request_is_sent_for_an_ended_job(ray: FakeRay) -> None:
    ray.add_job("j", "SUCCEEDED")
    async with watching(ray) as cluster:
        cluster.poller.head_may_have_restarted()
        with cluster.poller.watch("j") as watch:
            await news_of(watch, Seen)
            await anyio.sleep(3 * INTERVAL)
    assert requests_sent(ray) == 0
