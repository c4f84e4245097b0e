"""Workers, runs and a sweep around shared clusters, on a fake Kubernetes and without a Prefect."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from prefect_ray_worker.clusters.kuberay.look import StartTiming
from prefect_ray_worker.clusters.kuberay.source import KubeRayClusters
from prefect_ray_worker.clusters.source import Cluster, RunAndAttempt, RunOfCluster
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.config.kuberay import KubeRay, KubernetesConfig
from prefect_ray_worker.prefect_api.cluster_events import ClusterEvents, ClusterHappening
from prefect_ray_worker.shared.ids import ClusterRef
from tests.fake_kubernetes import FakeKubernetes
from tests.waiting import wait_until

IMAGE = "rayproject/ray:2.60.0-py311"
POOL_ID = UUID("00000000-0000-0000-0000-0000000000aa")
QUICK = StartTiming(poll=0.05, queue=0.1, image=0.4, operator=0.5)


class UnsentEvents(ClusterEvents):
    """Sends nothing: there is no Prefect."""

    async def tell(self, happening: ClusterHappening, ref: ClusterRef, **_: Any) -> bool:
        return True


@dataclass
class Run:
    """A run as Prefect has it, and the progress of its cluster's start.

    Attributes:
        ref: What its label names; survives the death of its worker.
        goes_on: Whether it is Pending or Running.
    """

    ref: ClusterRef | None = None
    goes_on: bool = True
    job_id: str = field(default_factory=lambda: f"prefect-{uuid4()}-{uuid4().hex[-12:]}")
    said: list[str] = field(default_factory=list)
    joined: list[ClusterRef] = field(default_factory=list)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def will_use(self, ref: ClusterRef) -> None:
        self.ref = ref

    def tell(self, line: str) -> None:
        self.said.append(line)

    def waits(self, reason: str) -> None:
        self.said.append(reason)

    async def happened(self, happening: ClusterHappening, ref: ClusterRef, **_: Any) -> None:
        if happening is ClusterHappening.JOINED:
            self.joined.append(ref)


@dataclass
class View:
    """What Prefect says about the runs of the pool."""

    known: list[Run]
    pool_id: UUID = POOL_ID
    is_away: bool = False
    is_chosen: bool = True

    def is_mine(self, _: str) -> bool:
        return self.is_chosen

    async def runs(
        self, attempts: frozenset[RunAndAttempt]
    ) -> Mapping[RunAndAttempt, RunOfCluster]:
        return {}

    async def in_use(self) -> frozenset[ClusterRef]:
        if self.is_away:
            raise ConnectionError("Prefect is away")
        return frozenset(r.ref.planned for r in self.known if r.goes_on and r.ref is not None)


@dataclass
class SharedStage:
    """A pool whose runs share clusters.

    Attributes:
        kubernetes: The fake.
        asked: The job variable of the runs.
    """

    kubernetes: FakeKubernetes
    asked: KubeRay
    known: list[Run] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def run(self) -> Run:
        self.known.append(Run())
        return self.known[-1]

    def configuration(self, **changes: Any) -> RayJobConfiguration:
        labels = {
            "prefect.io/work-pool-id": str(POOL_ID),
            "prefect.io/work-pool-name": "research",
        }
        asked = KubeRay.model_validate({**self.asked.model_dump(), **changes})
        # Prefect adds labels after the check of the user's own.
        return RayJobConfiguration(kuberay=asked).model_copy(update={"labels": labels})

    @asynccontextmanager
    async def worker(self) -> AsyncIterator["Worker"]:
        """A process of its own, as far as clusters are concerned."""
        source = KubeRayClusters(UnsentEvents())
        source.timing = QUICK
        try:
            yield Worker(self, source)
        finally:
            await source.close(self.said.append, frozenset())


@dataclass
class Worker:
    stage: SharedStage
    source: KubeRayClusters

    async def provide(self, run: Run, **changes: Any) -> Cluster:
        """Get a run its cluster as `runs/provide` does, and record it before the submission."""
        configuration = self.stage.configuration(**changes)
        plan = await self.source.plan(configuration, run.job_id, run.ref)
        assert plan is not None
        cluster = await self.source.acquire(plan, run)
        run.ref = cluster.ref
        return cluster

    async def sweep(self, *, prefect_is_away: bool = False, is_chosen: bool = True) -> None:
        view = View(self.stage.known, is_away=prefect_is_away, is_chosen=is_chosen)
        await self.source.sweep(view, self.stage.configuration(), self.stage.said.append)


def name_of(cluster: Cluster) -> str:
    return cluster.ref.planned.name.partition("/")[2]


async def goes(stage: SharedStage, worker: Worker, *names: str) -> None:
    """Sweep until clusters are gone."""

    async def gone() -> bool:
        await worker.sweep()
        return not set(names) & set(stage.kubernetes.clusters())

    await wait_until(gone, timeout=15, description=f"the end of {names}")


def ended(run: Run) -> Run:
    run.goes_on = False
    return run


def age_of(stage: SharedStage, name: str) -> None:
    """Make a cluster look as if it had been idle for an hour, without changing its version."""
    document = stage.kubernetes.store.find("rayclusters", "ray", name)
    assert document is not None
    long_ago = "2026-01-01T00:00:00+00:00"
    document["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    document["metadata"]["annotations"]["prefect-ray-worker/joined-at"] = f"{long_ago} 0123456789ab"
    for condition in document.get("status", {}).get("conditions", []):
        condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"


def a_stage(kubernetes: FakeKubernetes, **fields: Any) -> SharedStage:
    """Return a stage; its clusters are idle after a second unless told else."""
    config = kubernetes.kubeconfig()
    asked = KubeRay(
        scope="shared",
        image=IMAGE,
        namespace="ray",
        kubeconfig=KubernetesConfig(config=config, context_name="fake"),
        **{"idle_seconds": 1, **fields},
    )
    return SharedStage(kubernetes, asked)
