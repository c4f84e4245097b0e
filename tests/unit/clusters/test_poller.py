"""`ClusterPoller` against a fake head: what it tells, and how little it asks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import anyio
import httpx
import pytest
from prometheus_client import REGISTRY

from prefect_ray_worker.clusters.existing import cluster_at
from prefect_ray_worker.clusters.open import OpenCluster, OpenClusters
from prefect_ray_worker.clusters.poller import JobWatch, Missing, Observation, Seen, Unreachable
from prefect_ray_worker.clusters.source import Cluster
from prefect_ray_worker.ray_api import client
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.tokens import TokenSource
from tests.fake_ray import FakeRay, Fault, Kind
from tests.waiting import patience, wait_until

INTERVAL = 0.2
LONGEST_PAUSE = INTERVAL * 1.2
"""With the jitter."""
MANY = 200
LIST = r"/api/jobs/$"
ONE = r"/api/jobs/.+"


@asynccontextmanager
async def watching(ray: FakeRay, token: str | None = None) -> AsyncIterator[OpenCluster]:
    async with OpenClusters(interval=INTERVAL) as clusters:
        yield await clusters.get(cluster_at(Connection(ray.address, TokenSource(literal=token))))


async def news(watch: JobWatch, seconds: float = 5) -> Observation:
    with anyio.fail_after(seconds * patience()):
        return await watch.next()


async def news_of(watch: JobWatch, kind: type[Observation], seconds: float = 5) -> Observation:
    """Wait for an observation of a kind; what was seen before it does not matter."""
    with anyio.fail_after(seconds * patience()):
        while not isinstance(observation := await watch.next(), kind):
            pass
    return observation


def many(stack: ExitStack, ray: FakeRay, cluster: OpenCluster, count: int = MANY) -> list[JobWatch]:
    """Add jobs and watch them all."""
    for i in range(count):
        ray.add_job(f"j{i}")
    return [stack.enter_context(cluster.poller.watch(f"j{i}")) for i in range(count)]


async def test_a_cluster_that_is_forgotten_is_not_silent(ray: FakeRay) -> None:
    def age() -> float | None:
        labels = {"address": ray.address}
        return REGISTRY.get_sample_value("prefect_ray_poll_age_seconds", labels)

    ray.add_job("j")
    async with OpenClusters(interval=INTERVAL) as clusters:
        opened = await clusters.get(cluster_at(Connection(ray.address)))
        with opened.poller.watch("j") as watch:
            await news_of(watch, Seen)
            assert age()
            await clusters.forget(opened.ref)
            await wait_until(lambda: not age(), timeout=5, description="no age")


async def test_renewed_credentials_are_taken_up_while_a_job_is_watched(ray: FakeRay) -> None:
    """A token in a block was rotated, and healthy runs were Crashed after an hour of 403."""
    ray.token = "old"
    ray.add_job("j")
    stored = "old"

    async def resolve_anew(opened: OpenCluster) -> Cluster:
        return cluster_at(Connection(opened.ref.name, TokenSource(literal=stored)))

    first = cluster_at(Connection(ray.address, TokenSource(literal="old")))
    async with OpenClusters(interval=INTERVAL, resolve_anew=resolve_anew) as clusters:
        opened = await clusters.get(first)
        with opened.poller.watch("j") as watch:
            await news_of(watch, Seen)
            ray.token = stored = "new"
            await news_of(watch, Unreachable)
            await news_of(watch, Seen, seconds=10)
        renewed = cluster_at(Connection(ray.address, TokenSource(literal="new")))
        assert await clusters.get(renewed) is opened


async def test_credentials_of_another_cluster_are_not_taken(ray: FakeRay) -> None:
    ray.token = "right"
    ray.add_job("j")
    asked = anyio.Event()

    async def resolve_anew(_: OpenCluster) -> Cluster:
        asked.set()
        return cluster_at(Connection("http://other:8265", TokenSource(literal="right")))

    async with OpenClusters(interval=INTERVAL, resolve_anew=resolve_anew) as clusters:
        opened = await clusters.get(cluster_at(Connection(ray.address)))
        with opened.poller.watch("j") as watch:
            await news_of(watch, Unreachable)
            await asked.wait()
            await anyio.sleep(INTERVAL)
            assert opened.client.connection.address == ray.address
            await news_of(watch, Unreachable)


async def test_nothing_is_asked_without_watches(ray: FakeRay) -> None:
    async with watching(ray):
        await asyncio.sleep(LONGEST_PAUSE * 2)
    assert ray.requests == []


async def test_one_list_serves_200_watches(ray: FakeRay) -> None:
    async with watching(ray) as cluster:
        with ExitStack() as stack:
            watches = many(stack, ray, cluster)
            for _ in range(3):
                seen = await asyncio.gather(*(news(watch) for watch in watches))
                assert all(isinstance(o, Seen) for o in seen)
    assert ray.requests.number_of("GET", ONE) == 0
    assert ray.requests.number_of("GET", LIST) == 3
    assert ray.requests.max_in_flight == 1


@pytest.mark.parametrize("count", [1, 3])
async def test_few_jobs_are_asked_one_by_one(ray: FakeRay, count: int) -> None:
    async with watching(ray) as cluster:
        with ExitStack() as stack:
            for watch in many(stack, ray, cluster, count):
                assert isinstance(await news(watch), Seen)
    assert ray.requests.by_kind == {"GET /api/jobs/{id}": count}


async def test_an_end_is_told_within_two_intervals(ray: FakeRay) -> None:
    async with watching(ray) as cluster:
        with ExitStack() as stack:
            watch = many(stack, ray, cluster)[17]
            await news(watch)
            ray.jobs["j17"].set("FAILED")
            with anyio.fail_after((2 * INTERVAL + 0.2) * patience()):
                while True:
                    observation = await watch.next()
                    if isinstance(observation, Seen) and observation.details.is_terminal:
                        break


async def test_a_job_added_while_the_poller_rests_is_looked_at_at_once(ray: FakeRay) -> None:
    ray.add_job("late")
    async with OpenClusters(interval=30) as clusters:
        cluster = await clusters.get(cluster_at(Connection(ray.address)))
        with ExitStack() as stack:
            for watch in many(stack, ray, cluster):
                await news(watch)
            with cluster.poller.watch("late") as watch:
                assert isinstance(await news(watch, 1), Seen)


async def test_a_burst_of_new_jobs_is_not_a_list_for_each(ray: FakeRay) -> None:
    """A list costs the head one look-up for each job that it knows, so a burst must share them."""
    ray.faults.add(Fault("GET", LIST, kind=Kind.SLOW, delay=0.05, times=None))
    async with OpenClusters(interval=5) as clusters:
        cluster = await clusters.get(cluster_at(Connection(ray.address)))
        with ExitStack() as stack:
            for watch in many(stack, ray, cluster, 10):
                await news(watch)
            ray.requests.reset()
            for i in range(100):
                ray.add_job(f"new{i}")
                latest = stack.enter_context(cluster.poller.watch(f"new{i}"))
                await asyncio.sleep(0.01)
            assert isinstance(await news(latest, 2), Seen)
    assert ray.requests.number_of("GET", LIST) <= 8, "each look is followed by a rest"


async def test_missing_from_a_stale_list_but_there_is_seen(ray: FakeRay) -> None:
    ray.faults.add(
        Fault("GET", LIST, kind=Kind.STATUS, status=200, body="[]", times=None,
              content_type="application/json")
    )  # fmt: skip
    async with watching(ray) as cluster:
        with ExitStack() as stack:
            for watch in many(stack, ray, cluster, 5):
                assert isinstance(await news(watch), Seen)


async def test_deleted_is_missing_with_the_session(ray: FakeRay) -> None:
    async with watching(ray) as cluster:
        with ExitStack() as stack:
            watches = many(stack, ray, cluster, 20)
            await news(watches[3])
            del ray.jobs["j3"]
            assert await news_of(watches[3], Missing) == Missing(ray.session_name)
            assert isinstance(await news(watches[4]), Seen)


async def test_a_head_that_forgot_everything_says_so_with_its_new_session(ray: FakeRay) -> None:
    async with watching(ray) as cluster:
        with ExitStack() as stack:
            watches = many(stack, ray, cluster, 20)
            await news(watches[0])
            ray.restart(new_session=True)
            for watch in watches:
                assert await news_of(watch, Missing) == Missing(ray.session_name)


async def test_missing_is_not_said_while_the_session_cannot_be_asked(ray: FakeRay) -> None:
    ray.faults.add(Fault("GET", "/api/version", kind=Kind.DROP, times=2))
    async with watching(ray) as cluster:
        with cluster.poller.watch("never") as watch:
            assert isinstance(await news(watch), Unreachable)
            assert await news_of(watch, Missing) == Missing(ray.session_name)


async def test_unreachable_is_told_backed_off_and_ends(ray: FakeRay) -> None:
    async with watching(ray) as cluster:
        with ExitStack() as stack:
            watch = many(stack, ray, cluster)[0]
            assert isinstance(await news(watch), Seen)
            await ray.stop_listening()
            assert isinstance(await news(watch), Unreachable)
            told = 0
            with anyio.move_on_after(1.2):
                while True:
                    assert isinstance(await watch.next(), Unreachable)
                    told += 1
            assert told <= 3, "after 0.2 s, 0.6 s and 1.4 s"
            await ray.listen_again()
            assert isinstance(await news_of(watch, Seen), Seen)
            # With the pauses of before it would be 1.3 s at least. A list that is slow on a busy
            # machine makes them longer than the interval.
            await news(watch, 1.2)
            await news(watch, 1.2)


@pytest.mark.parametrize("kind", [Kind.LOGIN_PAGE, Kind.REDIRECT, Kind.STATUS, Kind.HALF_BODY])
@pytest.mark.parametrize("count", [1, 20])
async def test_odd_answers_are_unreachable_and_never_missing(
    ray: FakeRay, kind: Kind, count: int
) -> None:
    async with watching(ray) as cluster:
        with ExitStack() as stack:
            watch = many(stack, ray, cluster, count)[0]
            assert isinstance(await news(watch), Seen)
            # The version answers: without it, nothing would ever be missing.
            fault = Fault("GET", "/api/jobs/", kind=kind, status=404, times=2, body="no page")
            ray.faults.add(fault)
            told = [await news_of(watch, Unreachable)]
            while fault.hits < 2 or not isinstance(told[-1], Seen):
                told.append(await news(watch))
            assert not [observation for observation in told if isinstance(observation, Missing)]


async def test_a_token_that_is_refused_is_unreachable_and_says_why() -> None:
    async with FakeRay(token="right") as ray, watching(ray, token="wr0ng") as cluster:
        ray.add_job("a")
        with cluster.poller.watch("a") as watch:
            observation = await news(watch)
            assert isinstance(observation, Unreachable)
            assert "refused our credentials" in observation.reason
            assert "wr0ng" not in observation.reason


@pytest.mark.parametrize("count", [3, 20])
async def test_one_job_that_cannot_be_read_does_not_hide_the_others(
    ray: FakeRay, count: int
) -> None:
    """Silence about one job is no silence of the cluster: the others' ends must be told."""
    async with watching(ray) as cluster:
        with ExitStack() as stack:
            watches = many(stack, ray, cluster, count)
            await news(watches[0])
            ray.faults.add(Fault("GET", "/j1$", kind=Kind.STATUS, status=500, times=None))
            ray.faults.add(
                Fault("GET", LIST, kind=Kind.STATUS, status=200, times=None,
                      content_type="application/json",
                      body='[{"submission_id": "j0", "status": "FAILED"}, {"odd": "record"}]')
            )  # fmt: skip
            ray.jobs["j0"].set("FAILED")
            del ray.jobs["j2"]
            assert isinstance(await news_of(watches[1], Unreachable), Unreachable)
            assert isinstance(await news_of(watches[2], Missing), Missing)
            seen = await news(watches[0])
            assert isinstance(seen, Seen)
            assert seen.details.is_terminal


async def test_a_head_that_hangs_is_unreachable_and_asked_once(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_TIMEOUT", httpx.Timeout(0.5))
    async with watching(ray) as cluster:
        with ExitStack() as stack:
            watch = many(stack, ray, cluster)[0]
            await news(watch)
            ray.requests.reset()
            ray.faults.add(Fault("*", "", kind=Kind.HANG, times=None))
            assert isinstance(await news(watch), Unreachable)
            assert len(ray.requests) == 1, "no pile of requests on a head that is busy"
            ray.faults.clear()
            ray.faults.release()
            assert isinstance(await news_of(watch, Seen), Seen)


async def test_one_look_up_that_hangs_does_not_hold_up_the_others(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_TIMEOUT", httpx.Timeout(2))
    async with watching(ray) as cluster:
        with ExitStack() as stack:
            ray.faults.add(Fault("GET", "/j0$", kind=Kind.HANG, times=None))
            for watch in many(stack, ray, cluster, 3)[1:]:
                assert isinstance(await news(watch, 1), Seen)


async def test_a_slow_head_is_asked_less_often(ray: FakeRay) -> None:
    ray.faults.add(Fault("GET", LIST, kind=Kind.SLOW, delay=0.3, times=None))
    async with watching(ray) as cluster:
        with ExitStack() as stack:
            many(stack, ray, cluster)
            await asyncio.sleep(2)
    assert ray.requests.number_of("GET", LIST) <= 2, "it rests four times as long as a look took"


async def test_ten_workers_of_a_pool_share_the_time_of_a_slow_head(ray: FakeRay) -> None:
    """Each of them gets the jobs of all in its lists."""
    ray.faults.add(Fault("GET", LIST, kind=Kind.SLOW, delay=0.1, times=None))
    async with OpenClusters(interval=INTERVAL, workers=lambda: 10) as clusters:
        cluster = await clusters.get(cluster_at(Connection(ray.address)))
        with ExitStack() as stack:
            many(stack, ray, cluster)
            await asyncio.sleep(2)
    assert ray.requests.number_of("GET", LIST) == 1, "alone, a worker lists three times"


async def test_100_watches_open_few_connections(ray: FakeRay) -> None:
    """Even when the list fails to show the jobs and each is looked up."""
    ray.faults.add(
        Fault("GET", LIST, kind=Kind.STATUS, status=200, body="[]", times=None,
              content_type="application/json")
    )  # fmt: skip
    ray.faults.add(Fault("GET", ONE, kind=Kind.SLOW, delay=0.01, times=None))
    async with watching(ray) as cluster:
        with ExitStack() as stack:
            seen = await asyncio.gather(*(news(w) for w in many(stack, ray, cluster, 100)))
            assert all(isinstance(o, Seen) for o in seen)
    assert ray.requests.max_in_flight <= 4


async def test_unwatching_ends_the_requests(ray: FakeRay) -> None:
    async with watching(ray) as cluster:
        with ExitStack() as stack:
            await news(many(stack, ray, cluster, 5)[0])
        await asyncio.sleep(LONGEST_PAUSE)
        ray.requests.reset()
        await asyncio.sleep(LONGEST_PAUSE * 2)
        assert ray.requests == []
        with cluster.poller.watch("j0") as watch:
            assert isinstance(await news(watch, 1), Seen)


async def test_a_cluster_that_is_down_does_not_slow_the_others(ray: FakeRay) -> None:
    async with FakeRay() as down, OpenClusters(interval=INTERVAL) as clusters:
        await down.stop_listening()
        ray.add_job("a")
        bad = await clusters.get(cluster_at(Connection(down.address)))
        good = await clusters.get(cluster_at(Connection(ray.address)))
        with bad.poller.watch("a") as silent, good.poller.watch("a") as heard:
            assert isinstance(await news(silent), Unreachable)
            for _ in range(4):
                assert isinstance(await news(heard, LONGEST_PAUSE + 0.2), Seen)


async def test_closing_ends_requests_that_hang(ray: FakeRay) -> None:
    ray.faults.add(Fault("*", "", kind=Kind.HANG, times=None))
    with anyio.fail_after(2 * patience()):
        async with watching(ray) as cluster:
            with cluster.poller.watch("a"):
                await wait_until(lambda: ray.requests.in_flight, description="a look hangs")
