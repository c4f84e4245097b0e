"""`Follower`: how long it watches a job."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import anyio
import pytest

from prefect_ray_worker.clusters.poller import Gone, JobWatch, Missing, Observation
from prefect_ray_worker.runs.follow import Follower
from prefect_ray_worker.shared.ids import job_of_attempt


class Poller:
    """Sees the same in each look."""

    def __init__(self, observation: Observation) -> None:
        self._observation = observation

    @contextmanager
    def watch(self, _: str) -> Iterator[JobWatch]:
        watch = JobWatch()
        watch.deliver(self._observation)
        yield watch


@pytest.mark.parametrize("observation", [Gone("it was deleted"), Missing(None)], ids=["gone", "no"])
async def test_a_job_that_cannot_start_any_more_is_not_watched(observation: Observation) -> None:
    """It was watched for ever after the shared cluster that had queued its stop was deleted."""
    attempt: Any = SimpleNamespace(
        job_id=job_of_attempt(uuid4(), "0123456789ab"),
        cluster=SimpleNamespace(poller=Poller(observation)),
        configuration=SimpleNamespace(forward_logs=False),
        limits=None,
        log=logging.getLogger("tests.follow"),
    )
    services: Any = SimpleNamespace(flow_runs=None)
    submitter: Any = SimpleNamespace(session=None, is_first=True)
    follower = Follower(services, attempt, submitter)
    with anyio.fail_after(1):
        await follower.prevent_start()
