"""Deploys flows, starts workers and waits for states, on a real Prefect server."""

import functools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import (
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_URL,
    PREFECT_HOME,
    temporary_settings,
)
from prefect.states import Cancelling, Scheduled

from prefect_ray_worker.worker import RayWorker
from tests.waiting import wait_until

FLOWS = Path(__file__).parent / "flows"
AUTHORITY = Path(__file__).parents[1] / "authority.pem"
"""The certificate of an authority of which nobody has the key."""
QUERY_SECONDS = "2"
"""Between two looks of a test's worker, each 30 ms of the server's CPU; events wake it as well."""


def set_timing(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Change waits of the workers that are started after this; see `Timing`."""
    monkeypatch.setattr(RayWorker, "timing", replace(RayWorker.timing, **seconds))


@contextmanager
def settings_of(api_url: str, home: Path, **env: str) -> Iterator[None]:
    """Point this process at a Prefect server, and nothing else of the user's."""
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        with temporary_settings(
            {
                PREFECT_API_URL: api_url,
                PREFECT_HOME: home,
                # Each client would read all authorities of the world, for 16 ms.
                PREFECT_API_SSL_CERT_FILE: str(AUTHORITY),
            }
        ):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass
class Pool:
    """A work pool of our type, and what a test does with it.

    Attributes:
        client: A Prefect client.
        name: The pool's name.
        defaults: Job variables for every deployment of the pool.
        flows: The folder of the flows that it deploys.
    """

    client: PrefectClient
    name: str
    defaults: dict[str, Any]
    flows: Path = FLOWS

    async def deploy(
        self,
        flow_name: str,
        *,
        job_variables: dict[str, Any] | None = None,
        pull_steps: list[dict[str, Any]] | None = None,
        entrypoint: str | None = None,
    ) -> UUID:
        """Create a deployment of one of the flows in `flows`."""
        flow_id = await self.client.create_flow_from_name(flow_name.replace("_", "-"))
        steps = pull_steps or [
            {"prefect.deployments.steps.set_working_directory": {"directory": str(self.flows)}}
        ]
        return await self.client.create_deployment(
            flow_id=flow_id,
            name=f"{flow_name}-{uuid4().hex[:6]}",
            entrypoint=entrypoint or f"flows.py:{flow_name}",
            pull_steps=steps,
            work_pool_name=self.name,
            job_variables={**self.defaults, **(job_variables or {})},
        )

    async def start(
        self, flow_name: str, parameters: dict[str, Any] | None = None, **deploy: Any
    ) -> UUID:
        """Deploy a flow and schedule a run of it for now."""
        deployment = await self.deploy(flow_name, **deploy)
        run = await self.client.create_flow_run_from_deployment(
            deployment, parameters=parameters, state=Scheduled()
        )
        return run.id

    async def read(self, run_id: UUID) -> FlowRun:
        return await self.client.read_flow_run(run_id)

    async def state(self, run_id: UUID) -> StateType | None:
        run = await self.read(run_id)
        return run.state.type if run.state else None

    async def wait_for(self, run_id: UUID, *types: StateType, seconds: float = 60) -> FlowRun:
        """Wait until the run is in one of these states, or in any final one."""

        async def there() -> bool:
            run = await self.read(run_id)
            if run.state is None:
                return False
            return run.state.type in types or (not types and run.state.is_final())

        try:
            await wait_until(there, timeout=seconds, description=f"run in {types or 'final'}")
        except BaseException as exc:
            run = await self.read(run_id)
            logs = await self.logs(run_id)
            raise AssertionError(f"{run.state!r}\n" + "\n".join(logs)) from exc
        return await self.read(run_id)

    async def cancel(self, run_id: UUID) -> None:
        await self.client.set_flow_run_state(run_id, Cancelling())

    async def logs(self, run_id: UUID) -> list[str]:
        found = await self.client.read_logs(
            log_filter=LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
        )
        return [log.message for log in found]

    async def wait_for_log(self, run_id: UUID, text: str, seconds: float = 20) -> str:
        """Wait until a line of the run's log contains a text; logs are sent in batches."""
        found = ""

        async def there() -> bool:
            nonlocal found
            found = "\n".join(line for line in await self.logs(run_id) if text in line)
            return bool(found)

        await wait_until(there, timeout=seconds, description=f"log with {text!r}")
        return found

    def worker(self, **kwargs: Any) -> RayWorker:
        return RayWorker(work_pool_name=self.name, prefetch_seconds=5, **kwargs)

    @asynccontextmanager
    async def working(self, count: int = 1, **kwargs: Any) -> AsyncIterator[list[RayWorker]]:
        """Run workers in the background, as `prefect worker start` does."""
        workers = [self.worker(**kwargs) for _ in range(count)]
        async with anyio.create_task_group() as tasks:
            for worker in workers:
                tasks.start_soon(_serve, worker, name=f"test-worker {worker.name}")
            try:
                yield workers
            finally:
                tasks.cancel_scope.cancel()


async def _serve(worker: RayWorker) -> None:
    await worker.start(printer=lambda *_: None)


@functools.cache
def default_template() -> dict[str, Any]:
    return RayWorker.get_default_base_job_template()


async def set_default(pool: Pool, name: str, value: Any) -> None:
    """Set a default in the pool's template, for all its runs."""
    template = (await pool.client.read_work_pool(pool.name)).base_job_template
    template["variables"]["properties"][name]["default"] = value
    await pool.client.update_work_pool(pool.name, WorkPoolUpdate(base_job_template=template))


@asynccontextmanager
async def new_pool(
    defaults: dict[str, Any], template: dict[str, Any] | None = None
) -> AsyncIterator[Pool]:
    """Create a pool of our type, with its default template or another; delete it afterwards."""
    async with get_client() as client:
        name = f"ray-{uuid4().hex[:8]}"
        await client.create_work_pool(
            WorkPoolCreate(
                name=name,
                type="ray",
                base_job_template=template or default_template(),
            )
        )
        try:
            yield Pool(client, name, defaults)
        finally:
            await client.delete_work_pool(name)
