"""`Follower`: how long it watches a job."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import anyio
import pytest

from prefect_ray_worker.clusters.poller import Gone, JobWatch, Missing, Observation, Unreachable
from prefect_ray_worker.runs.follow import Follower
from prefect_ray_worker.shared.ids import job_of_attempt


class Poller(JobWatch):
    """Sees the same in each look."""

    def __init__(self, observation: Observation) -> None:
        super().__init__()
        self._observation = observation
        self.looks = 0

    @contextmanager
    def watch(self, _: str) -> Iterator[JobWatch]:
        yield self

    async def next(self) -> Observation:
        await anyio.sleep(0.01)
        self.looks += 1
        return self._observation


def following(poller: Poller, *, unreachable: float = 60.0) -> Follower:
    """Return what follows a job that the poller watches, until it is silent for too long."""
    attempt: Any = SimpleNamespace(
        job_id=job_of_attempt(uuid4(), "0123456789ab"),
        cluster=SimpleNamespace(poller=poller),
        address="http://ray:8265",
        configuration=SimpleNamespace(forward_logs=False),
        limits=SimpleNamespace(unreachable=unreachable),
        log=logging.getLogger("tests.follow"),
    )
    services: Any = SimpleNamespace(flow_runs=None)
    submitter: Any = SimpleNamespace(session=None, is_first=True)
    return Follower(services, attempt, submitter)


@pytest.mark.parametrize("observation", [Gone("it was deleted"), Missing(None)], ids=["gone", "no"])
async def test_a_job_that_cannot_start_any_more_is_not_watched(observation: Observation) -> None:
    """It was watched for ever after the shared cluster that had queued its stop was deleted."""
    with anyio.fail_after(1):
        await following(Poller(observation)).prevent_start()


async def test_a_job_on_a_cluster_that_is_silent_for_too_long_is_not_watched(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It was watched for ever, and the age of the last poll grew until an alert fired."""
    poller = Poller(Unreachable("no route"))
    with anyio.fail_after(1):
        await following(poller, unreachable=0.05).prevent_start()
    assert poller.looks > 1, "a short silence says nothing"
    assert "does not answer" in caplog.text
