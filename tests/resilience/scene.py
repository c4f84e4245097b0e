"""`Scene`: one run on a real cluster behind a proxy, with workers that can be killed."""

import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.states import Scheduled

from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from prefect_ray_worker.runs.recovery.labels import OWNER_LABEL
from tests.fake_kubernetes import FakeKubernetes
from tests.integration.harness import Pool, new_pool
from tests.integration.processes import of_run
from tests.integration.worker_process import worker_process
from tests.resilience.cluster import SLOT, ChaosCluster
from tests.resilience.killable_server import KillableServer
from tests.resilience.proxy import Proxy, proxy
from tests.waiting import wait_until

FLOWS = Path(__file__).parent / "flows"
STEADY, VICTIM = "steady", "victim"
HEARTBEAT_SECONDS = 2
PATIENCE_SECONDS = 180
"""What anything may take on a busy machine before the suite calls it lost."""
GONE_SECONDS = 30
"""After this time a cluster counts as gone whose head is killed for good."""
_SLOW_SECONDS = 600
"""The same for all others: on a busy machine a head takes a minute to come back."""


@dataclass
class World:
    """What several scenes share.

    Attributes:
        server: The Prefect server.
        between: The proxy between workers and the cluster's dashboard, or the Kubernetes API.
        pool: The work pool.
        folder: Where homes and marks are.
        cluster: The Ray, if all runs use one.
        kubernetes: Where each run gets a Ray of its own, otherwise.
        ends: Whether the head is killed for good.
        worker_env: More environment variables of the workers.
        workers: The worker processes by their names.
    """

    server: KillableServer
    between: Proxy
    pool: Pool
    folder: Path
    cluster: ChaosCluster | None = None
    kubernetes: FakeKubernetes | None = None
    ends: bool = False
    worker_env: dict[str, str] = field(default_factory=dict)
    workers: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @contextmanager
    def worker(self, name: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a worker that takes only runs of a queue of its own name.

        It goes on with everybody's, though: recovery is about the pool.
        """
        limit = GONE_SECONDS if self.ends else _SLOW_SECONDS
        env = {
            "PREFECT_WORKER_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
            "PREFECT_API_REQUEST_TIMEOUT": "10",
            "PREFECT_INTEGRATIONS_RAY_WORKER_UNREACHABLE_LIMIT_SECONDS": str(limit),
            **self.worker_env,
        }
        home = self.folder / f"home-{name}"
        options = ("--name", name, "--work-queue", name)
        with worker_process(self.pool.name, home, *options, env=env) as process:
            self.workers[name] = process
            yield process


@dataclass
class Scene:
    """One run of the flow `holds`, from its start to its end.

    Attributes:
        world: Where it plays.
        folder: Where the run leaves its marks.
        queue: The worker that gets the run.
        variables: Its job variables.
        run_id: The run, once it is started.
    """

    world: World
    folder: Path
    queue: str = STEADY
    variables: dict[str, Any] = field(default_factory=dict)
    run_id: UUID = field(default_factory=uuid4)

    async def start(self, **variables: Any) -> None:
        """Schedule the run for now."""
        self.folder.mkdir()
        client = self.world.pool.client
        flow_id = await client.create_flow_from_name("holds")
        step = {"prefect.deployments.steps.set_working_directory": {"directory": str(FLOWS)}}
        deployment = await client.create_deployment(
            flow_id=flow_id,
            name=f"holds-{uuid4().hex[:6]}",
            entrypoint="chaos_flows.py:holds",
            pull_steps=[step],
            work_pool_name=self.world.pool.name,
            work_queue_name=self.queue,
            parameters={"folder": str(self.folder)},
            # Hooks are held for as long as a fault takes: the driver is not to be killed for it.
            job_variables={"stop_grace_seconds": 120, **self.variables, **variables},
        )
        run = await client.create_flow_run_from_deployment(deployment, state=Scheduled())
        self.run_id = run.id

    async def read(self) -> FlowRun:
        """Return the run as it is."""
        return await self.world.pool.read(self.run_id)

    def marks(self, name: str) -> list[str]:
        """Return the lines that the flow has left under a name."""
        path = self.folder / name
        return path.read_text().split() if path.exists() else []

    async def marked(self, name: str, count: int = 1) -> None:
        """Wait until the flow has left a mark."""
        await wait_until(
            lambda: len(self.marks(name)) >= count,
            timeout=PATIENCE_SECONDS,
            description=f"{count} {name} of the flow",
        )

    def let(self, name: str) -> None:
        """Give the flow the sign that it waits for: `go` or `go-hooks`."""
        (self.folder / name).touch()

    @property
    def engine(self) -> psutil.Process:
        """The process that runs the flow."""
        return psutil.Process(int(self.marks("executions")[-1]))

    async def said(self, text: str) -> None:
        """Wait for a line in the run's log."""
        await self.world.pool.wait_for_log(self.run_id, text, PATIENCE_SECONDS)

    async def taken_over_by(self, name: str) -> None:
        """Wait until a worker owns the run."""

        async def there() -> bool:
            return name in str((await self.read()).labels.get(OWNER_LABEL, ""))

        await wait_until(there, timeout=PATIENCE_SECONDS, description=f"{name} to own the run")

    async def settled(self, seconds: float) -> FlowRun:
        """Wait for the run's end."""
        return await self.world.pool.wait_for(self.run_id, seconds=seconds)

    async def all_gone(self, seconds: float = PATIENCE_SECONDS) -> float:
        """Wait until no process of the run is left, and return how long that took."""
        began = time.monotonic()
        await wait_until(
            lambda: not of_run(self.run_id), timeout=seconds, description="no process of the run"
        )
        return time.monotonic() - began

    async def leaves_no_task_running(self) -> None:
        """Wait until no task run of the run is open: its tag's slots would be taken for ever."""
        wanted = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[self.run_id]))

        async def settled() -> bool:
            runs = await self.world.pool.client.read_task_runs(task_run_filter=wanted)
            return all(run.state is not None and run.state.is_final() for run in runs)

        await wait_until(settled, timeout=PATIENCE_SECONDS, description="no open task run")

    async def told(self, *wanted: str) -> None:
        """Wait until each of some printed lines is in the run's log, and check that it is once."""

        async def all_there() -> bool:
            logged = [
                line for log in await self.world.pool.logs(self.run_id) for line in log.split("\n")
            ]
            counts = [logged.count(line) for line in wanted]
            assert max(counts) <= 1, f"lines are doubled: {wanted}, {counts}"
            return min(counts) == 1

        await wait_until(all_there, timeout=PATIENCE_SECONDS, description=f"lines {wanted}")

    async def occupy_slot(self) -> None:
        """Have something else hold the head's slot."""
        request = JobSubmitRequest(
            entrypoint="exec sleep 600",
            submission_id=self._occupant,
            runtime_env={},
            metadata={},
            entrypoint_resources={SLOT: 1},
        )
        async with self._direct() as client:
            await client.submit(request)

            async def holds() -> bool:
                return (await client.get(request.submission_id)).has_started

            await wait_until(holds, timeout=PATIENCE_SECONDS, description="the slot to be held")

    async def free_slot(self) -> None:
        """Give the head's slot free, if the cluster still knows who has it."""
        async with self._direct() as client:
            if any(job.submission_id == self._occupant for job in await client.list()):
                await client.stop(self._occupant)

    @property
    def _occupant(self) -> str:
        return f"occupies-{self.folder.name}"

    def _direct(self) -> JobsClient:
        return JobsClient(Connection(f"http://127.0.0.1:{self.world.cluster.port}"))


@asynccontextmanager
async def new_world(
    server: KillableServer, cluster: ChaosCluster, folder: Path, *, ends: bool = False
) -> AsyncIterator[World]:
    """Set up a pool behind a proxy, and its steady worker."""
    folder.mkdir(exist_ok=True)
    async with proxy(cluster.port) as between, new_pool({}) as pool:
        await set_default(pool, "address", between.address)
        world = World(server, between, pool, folder, cluster, ends=ends)
        with world.worker(STEADY):
            yield world


async def set_default(pool: Pool, variable: str, value: object) -> None:
    """Set what all runs of the pool have."""
    template = (await pool.client.read_work_pool(pool.name)).base_job_template
    template["variables"]["properties"][variable]["default"] = value
    await pool.client.update_work_pool(pool.name, WorkPoolUpdate(base_job_template=template))
