"""One set of contract tests, two clusters: the fake and a real Ray."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobDetails, JobSubmitRequest
from tests.fake_ray import FakeRay, like_a_shell
from tests.waiting import wait_until


def new_id() -> str:
    return f"contract-{uuid.uuid4()}"


@dataclass
class Cluster:
    """A cluster under test, by our client and by raw HTTP."""

    client: JobsClient
    raw: httpx.AsyncClient

    async def submit(self, entrypoint: str, **fields: Any) -> str:
        request = JobSubmitRequest(
            entrypoint=entrypoint,
            submission_id=fields.pop("submission_id", None) or new_id(),
            runtime_env={},
            metadata=fields.pop("metadata", {}),
            **fields,
        )
        return await self.client.submit(request)

    async def until(self, submission_id: str, status: str) -> JobDetails:
        async def reached() -> JobDetails | None:
            job = await self.client.get(submission_id)
            return job if job.status == status else None

        found = await wait_until(
            reached, timeout=60, description=f"job {submission_id} becomes {status}"
        )
        assert found is not None
        return found


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.ray)])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    """The fake Ray, then a real one."""
    if request.param == "fake":
        async with FakeRay() as ray:
            ray.on_submit = like_a_shell
            ray.ghost_seconds = 0.5
            async with _opened(ray.address) as opened:
                yield opened
    else:
        # Asked for here and not as an argument: the fake must not wait for a real Ray.
        async with _opened(request.getfixturevalue("ray_cluster").address) as opened:
            yield opened


@asynccontextmanager
async def _opened(address: str) -> AsyncIterator[Cluster]:
    # 30 s: the first submission wakes Ray's head agent, which takes seconds.
    async with (
        JobsClient(Connection(address)) as client,
        httpx.AsyncClient(base_url=address, trust_env=False, timeout=30) as raw,
    ):
        yield Cluster(client, raw)
