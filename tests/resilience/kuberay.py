"""Runs that each get a cluster of their own: its faults, its stages, and where they play."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from signal import SIGKILL
from urllib.parse import urlsplit

import psutil
from prefect.client.schemas.objects import StateType

from tests.fake_kubernetes import CRD, NO_NODE, FakeKubernetes, Fault, Kind, RealHeads, Script
from tests.integration.harness import new_pool
from tests.real_ray import marked
from tests.resilience import faults as f
from tests.resilience.faults import Needs
from tests.resilience.killable_server import KillableServer
from tests.resilience.proxy import proxy
from tests.resilience.scene import PATIENCE_SECONDS, STEADY, Scene, World, set_default
from tests.resilience.stages import RUNNING, Stage
from tests.waiting import wait_until

NAMESPACE = "ray"


@asynccontextmanager
async def new_kubernetes_world(server: KillableServer, folder: Path) -> AsyncIterator[World]:
    """Set up a Kubernetes behind a proxy, a pool that makes clusters there, and a steady worker."""
    folder.mkdir(exist_ok=True)
    async with (
        FakeKubernetes(heads=RealHeads(), checks_fields=CRD.exists()) as kubernetes,
        proxy(urlsplit(kubernetes.address).port or 0) as between,
        new_pool({}) as pool,
    ):
        await set_default(pool, "kuberay", {"image": f"rayproject/ray:{version('ray')}"})
        config = kubernetes.write_kubeconfig(folder, cluster={"server": between.address})
        env = {"KUBECONFIG": str(config)}
        world = World(
            server, between, pool, folder / "marks", kubernetes=kubernetes, worker_env=env
        )
        world.folder.mkdir()
        with world.worker(STEADY):
            yield world


def clusters_made(kubernetes: FakeKubernetes) -> int:
    """Return how many RayClusters have had a head."""
    assert isinstance(kubernetes.heads, RealHeads)
    return len(kubernetes.heads.by_cluster)


async def no_cluster_left(kubernetes: FakeKubernetes, seconds: float) -> None:
    """Wait until there is no RayCluster and no pod."""
    await wait_until(
        lambda: not kubernetes.clusters() and not kubernetes.store.all("pods"),
        timeout=seconds,
        description="the end of all RayClusters",
    )


def _of(scene: Scene) -> FakeKubernetes:
    assert scene.world.kubernetes is not None
    return scene.world.kubernetes


async def _reach_starting(scene: Scene) -> None:
    _of(scene).scripts.default = Script(unschedulable=NO_NODE)
    await scene.start()
    await scene.said("the head waits for a node")


async def _leave_starting(scene: Scene) -> None:
    _of(scene).scripts.default = Script()
    scene.let("go")


async def _reach_releasing(scene: Scene) -> None:
    await RUNNING.reach(scene)
    kubernetes = _of(scene)
    kubernetes.faults.add(Fault("DELETE", "/rayclusters/", kind=Kind.HANG, times=1))
    scene.let("go")
    await scene.world.pool.wait_for(scene.run_id, StateType.COMPLETED, seconds=PATIENCE_SECONDS)
    await wait_until(
        lambda: kubernetes.requests.number_of("DELETE", "/rayclusters/"),
        timeout=PATIENCE_SECONDS,
        description="the deletion of the cluster",
    )


async def _leave_releasing(scene: Scene) -> None:
    """Nothing waits for a sign: the run has ended."""


STARTING = Stage(
    "starting",
    "the run's RayCluster exists, and its head waits for a node",
    _reach_starting,
    _leave_starting,
)
RELEASING = Stage(
    "releasing",
    "the run has ended, and the worker's request to delete its RayCluster is on the way",
    _reach_releasing,
    _leave_releasing,
)


async def _kill_head(scene: Scene) -> None:
    """Kill every process in the head's container at once; Kubernetes starts it again."""
    kubernetes = _of(scene)
    assert isinstance(kubernetes.heads, RealHeads)
    (name,) = kubernetes.clusters()
    victims = marked(str(kubernetes.heads.by_cluster[name].temp_dir))
    for victim in victims:
        with suppress(psutil.NoSuchProcess):  # it was a short one
            victim.kill()
    psutil.wait_procs(victims, timeout=5)
    await kubernetes.kubelet.kill_head(NAMESPACE, name)


async def _delete_cluster(scene: Scene) -> None:
    kubernetes = _of(scene)
    (name,) = kubernetes.clusters()
    kubernetes.store.delete("rayclusters", NAMESPACE, name)


WORKER_KILLED = f.Fault(
    "KubeRay: worker, SIGKILL", Needs.KUBERNETES_WORKER, partial(f.signal_worker, SIGKILL)
)
HEAD_KILLED = f.Fault(
    "KubeRay: head, SIGKILL, and its container started again", Needs.KUBERNETES, _kill_head
)
API_AWAY = f.Fault(
    f"KubeRay: Kubernetes API, away for {f.AWAY_SECONDS} s", Needs.KUBERNETES, f.cut_network
)
CLUSTER_DELETED = f.Fault("KubeRay: RayCluster deleted by hand", Needs.KUBERNETES, _delete_cluster)
