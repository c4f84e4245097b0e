"""A real Prefect server and a fake Kubernetes whose clusters are fake Rays: the test is driver."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun, StateType

from prefect_ray_worker.clusters.kuberay.look import StartTiming
from prefect_ray_worker.clusters.kuberay.source import KubeRayClusters
from tests.fake_kubernetes import CRD, MISSING_CRD, FakeHeads, FakeKubernetes, RealHeads
from tests.fake_ray import FakeJob, FakeRay
from tests.fake_ray.script import RUNS_FOREVER
from tests.integration.harness import Pool, new_pool, set_timing
from tests.integration.stage import STAGE_INTERVAL, report
from tests.waiting import wait_until

KUBERAY: dict[str, Any] = {"image": "rayproject/ray:2.60.0-py311"}
QUICK = StartTiming(poll=0.2, queue=0.3, image=2.0, operator=1.0)


@dataclass
class KubeRayStage:
    """What a test of clusters for each run acts on.

    Attributes:
        pool: A work pool whose deployments ask for KubeRay.
        kubernetes: The fake.
        heads: Its fake Rays.
    """

    pool: Pool
    kubernetes: FakeKubernetes
    heads: FakeHeads

    async def start(self, *, kuberay: dict[str, Any] | None = None, **job_variables: Any) -> UUID:
        """Schedule a run for now."""
        variables = {"kuberay": {**KUBERAY, **(kuberay or {})}, **job_variables}
        return await self.pool.start("adds", job_variables=variables)

    def names_of(self, run_id: UUID) -> list[str]:
        """Return the clusters that Kubernetes has for a run."""
        return [n for n in self.kubernetes.clusters() if n.startswith(f"ray-{run_id.hex}-")]

    async def name_of(self, run_id: UUID) -> str:
        """Wait for the run's one cluster."""
        await wait_until(lambda: self.names_of(run_id), timeout=30, description="a cluster")
        (name,) = self.names_of(run_id)
        return name

    async def job_of(self, run_id: UUID) -> tuple[FakeRay, FakeJob]:
        """Wait for the run's job; return its Ray, too."""
        name = await self.name_of(run_id)

        def there() -> bool:
            return name in self.heads.by_cluster and bool(self.heads.by_cluster[name].jobs)

        await wait_until(there, timeout=30, description="a job on the run's cluster")
        ray = self.heads.by_cluster[name]
        (job,) = (job for id_, job in ray.jobs.items() if str(run_id) in id_)
        return ray, job

    async def shared_job_of(self, run_id: UUID) -> tuple[str, FakeJob]:
        """Wait for the run's job on whatever cluster; return the cluster's name, too."""
        found: list[tuple[str, FakeJob]] = []

        def there() -> bool:
            found[:] = [
                (name, job)
                for name, ray in self.heads.by_cluster.items()
                for id_, job in ray.jobs.items()
                if str(run_id) in id_
            ]
            return bool(found)

        await wait_until(there, timeout=60, description="a job on a cluster")
        (only,) = found  # on two clusters it would be submitted twice
        return only

    async def running(self, **variables: Any) -> tuple[UUID, FakeRay, FakeJob]:
        """Start a run and wait until its worker watches a job that runs, and it is Running."""
        run_id = await self.start(**variables)
        ray, job = await self.job_of(run_id)
        await self.play(run_id, StateType.RUNNING)
        await self.pool.wait_for_log(run_id, "is RUNNING")
        return run_id, ray, job

    async def play(self, run_id: UUID, state: StateType) -> None:
        """Report a state as the driver would."""
        await report(self.pool, run_id, state)

    async def completes(self, run_id: UUID, job: FakeJob) -> None:
        """End a run as its driver would."""
        await self.play(run_id, StateType.COMPLETED)
        job.set("SUCCEEDED", driver_exit_code=0)

    async def ends(
        self, run_id: UUID, state: StateType, text: str = "", *, seconds: float = 30
    ) -> FlowRun:
        """Wait for the run's end and check its state and what its message says."""
        run = await self.pool.wait_for(run_id, seconds=seconds)
        assert run.state is not None
        said = run.state.message or ""
        assert run.state.type == state, run.state
        assert re.search(text, said), said
        return run

    async def is_gone(self, run_id: UUID) -> None:
        """Wait until Kubernetes has no cluster for a run."""
        await wait_until(
            lambda: not self.names_of(run_id), timeout=20, description="the cluster's end"
        )


@asynccontextmanager
async def new_kuberay_stage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, heads: RealHeads | None = None
) -> AsyncIterator[KubeRayStage]:
    """Set up a fake Kubernetes and a pool for it; its clusters are fake Rays unless told else."""
    if not CRD.exists():
        pytest.skip(MISSING_CRD)

    def prepare(ray: FakeRay, _: str) -> None:
        ray.on_submit = RUNS_FOREVER

    fakes = FakeHeads(prepare)
    monkeypatch.setattr(KubeRayClusters, "timing", QUICK)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_RAY_WORKER_POLL_INTERVAL_SECONDS", str(STAGE_INTERVAL))
    set_timing(monkeypatch, report_grace=1.0, retry_delay=1.0, nodes_end=1.0)
    async with (
        FakeKubernetes(heads=heads or fakes) as kubernetes,
        new_pool({}) as pool,
    ):
        monkeypatch.setenv("KUBECONFIG", str(kubernetes.write_kubeconfig(folder)))
        yield KubeRayStage(pool, kubernetes, fakes)
