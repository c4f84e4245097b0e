"""What is done to a run's surroundings. Each returns when the fault is over, if it passes."""

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial

import anyio
import anyio.to_thread
import httpx
import psutil

from tests.integration.processes import guard_of, is_alive, job_supervisor_of, supervisor_of
from tests.resilience.proxy import Mode
from tests.resilience.scene import PATIENCE_SECONDS, STEADY, VICTIM, Scene
from tests.waiting import wait_until

AWAY_SECONDS = 8
"""How long something is away that comes back."""


class Needs(Enum):
    """Which surroundings a fault needs."""

    SHARED = "a cluster that survives it"
    WORKER = "a worker besides that can be hurt"
    CLUSTER = "a cluster of its own"
    END = "a cluster of its own, which ends for good"
    NODE = "a cluster of its own, with a second node"
    REDIS = "a cluster of its own, with a second node and a Redis"
    PREFECT = "a Prefect server of its own, with its database in a file"
    KUBERNETES = "a Kubernetes with KubeRay, simulated, where each run gets a real Ray"
    KUBERNETES_WORKER = "the same, and a worker besides that can be hurt"


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: In the table.
        needs: Its surroundings.
        strike: Does it.
    """

    name: str
    needs: Needs
    strike: Callable[[Scene], Awaitable[None]]

    @property
    def hurts_worker(self) -> bool:
        """Whether it strikes a worker, which then must not be the one that goes on."""
        return self.needs in (Needs.WORKER, Needs.KUBERNETES_WORKER)


async def _over_to_steady(scene: Scene) -> None:
    state = (await scene.read()).state
    if state is not None and not state.is_final():
        await scene.taken_over_by(STEADY)


async def signal_worker(number: signal.Signals, scene: Scene) -> None:
    process = scene.world.workers[VICTIM]
    process.send_signal(number)
    await anyio.to_thread.run_sync(partial(process.wait, PATIENCE_SECONDS))
    await _over_to_steady(scene)


async def _pause_worker(scene: Scene) -> None:
    process = scene.world.workers[VICTIM]
    process.send_signal(signal.SIGSTOP)
    try:
        await _over_to_steady(scene)
    finally:
        process.send_signal(signal.SIGCONT)
    await anyio.sleep(AWAY_SECONDS)  # what it had in hand when it fell asleep


async def _kill(victim_of: Callable[[psutil.Process], psutil.Process], scene: Scene) -> None:
    engine = scene.engine
    victim_of(engine).kill()
    await _dead(engine)


async def _dead(engine: psutil.Process) -> None:
    """Wait for the engine's end: only then may the run be let go, as it is to die where it is."""
    await wait_until(
        lambda: not is_alive(engine), timeout=PATIENCE_SECONDS, description="the engine to die"
    )


async def _kill_node(scene: Scene) -> None:
    engine = scene.engine
    scene.world.cluster.kill_raylet_of_node()
    await _dead(engine)


async def _kill_job_head(scene: Scene) -> None:
    # Its title; the dashboard itself is called with the names of its modules.
    scene.world.cluster.part_of_head("ray-dashboard-JobHead").kill()
    await _dashboard_answers(scene)


async def _restart_dashboard(scene: Scene) -> None:
    cluster = scene.world.cluster
    cluster.keep_the_rest()
    cluster.restart(cluster.part_of_head("dashboard.py"))
    await _dashboard_answers(scene)


async def _dashboard_answers(scene: Scene) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:

        async def there() -> bool:
            try:
                url = f"http://127.0.0.1:{scene.world.cluster.port}/api/jobs/"
                return (await client.get(url)).is_success
            except httpx.HTTPError:
                return False

        await anyio.sleep(1)
        await wait_until(there, timeout=PATIENCE_SECONDS, description="the dashboard")


async def _kill_head(scene: Scene) -> None:
    scene.world.cluster.kill_head()


async def _restart_head(scene: Scene) -> None:
    cluster = scene.world.cluster
    cluster.kill_head()
    scene.world.between.release_submission()
    await anyio.sleep(AWAY_SECONDS / 2)
    await anyio.to_thread.run_sync(cluster.start_head)


async def _restart_head_then_kill(scene: Scene) -> None:
    """A death that a head does not notice which has no `JobManager` yet."""
    victim = job_supervisor_of(scene.engine)
    await _restart_head(scene)
    victim.kill()


async def _disturb_network(mode: Mode, scene: Scene) -> None:
    between = scene.world.between
    between.become(mode)
    between.release_submission()
    await anyio.sleep(AWAY_SECONDS)
    await between.mend()


async def cut_network(scene: Scene) -> None:
    await scene.world.between.cut()
    await anyio.sleep(AWAY_SECONDS)
    await scene.world.between.mend()


async def _restart_prefect(scene: Scene) -> None:
    server = scene.world.server
    await anyio.to_thread.run_sync(server.kill)
    scene.world.between.release_submission()
    scene.let("go")
    await anyio.sleep(AWAY_SECONDS)
    await anyio.to_thread.run_sync(server.start)


async def _fail_by_hand(scene: Scene) -> None:
    """Set the state as the UI does, or an automation: not through Prefect's own client."""
    body = {"state": {"type": "FAILED", "name": "Failed", "message": "by hand"}, "force": True}
    async with httpx.AsyncClient(base_url=scene.world.server.api_url, trust_env=False) as client:
        (await client.post(f"/flow_runs/{scene.run_id}/set_state", json=body)).raise_for_status()


WORKER_KILLED = Fault("worker, SIGKILL", Needs.WORKER, partial(signal_worker, signal.SIGKILL))
WORKER_TERMINATED = Fault("worker, SIGTERM", Needs.WORKER, partial(signal_worker, signal.SIGTERM))
WORKER_PAUSED = Fault("worker, SIGSTOP, later SIGCONT", Needs.WORKER, _pause_worker)
GUARD = Fault("driver's guard, SIGKILL", Needs.SHARED, partial(_kill, guard_of))
SUPERVISOR = Fault("driver's supervisor, SIGKILL", Needs.SHARED, partial(_kill, supervisor_of))
ENGINE = Fault("driver's engine, SIGKILL", Needs.SHARED, partial(_kill, lambda e: e))
JOB_SUPERVISOR = Fault(
    "Ray's JobSupervisor, SIGKILL", Needs.SHARED, partial(_kill, job_supervisor_of)
)
JOB_HEAD = Fault("dashboard's JobHead process, SIGKILL", Needs.SHARED, _kill_job_head)
DASHBOARD = Fault("dashboard, SIGKILL and started again", Needs.CLUSTER, _restart_dashboard)
NODE_LOST = Fault("raylet of the driver's node, SIGKILL", Needs.NODE, _kill_node)
HEAD_GONE = Fault("head, SIGKILL, for good", Needs.END, _kill_head)
HEAD_RESTARTED = Fault("head, SIGKILL and started again", Needs.CLUSTER, _restart_head)
HEAD_RESTARTED_NODE = Fault(
    "head, SIGKILL and started again; driver on another node", Needs.NODE, _restart_head
)
HEAD_WITH_REDIS = Fault("head with Redis, SIGKILL and started again", Needs.REDIS, _restart_head)
HEAD_WITH_REDIS_NODE = Fault(
    "head with Redis, SIGKILL and started again; driver on another node",
    Needs.REDIS,
    _restart_head,
)
STUCK_RECORD = Fault(
    "head with Redis restarted, then the JobSupervisor on another node, SIGKILL",
    Needs.REDIS,
    _restart_head_then_kill,
)
NETWORK_CUT = Fault("network to the head, cut for 8 s", Needs.SHARED, cut_network)
NETWORK_HANGS = Fault(
    "head that takes requests and is silent for 8 s",
    Needs.SHARED,
    partial(_disturb_network, Mode.HANGS),
)
NETWORK_HALVES = Fault(
    "answers that break off in the middle for 8 s",
    Needs.SHARED,
    partial(_disturb_network, Mode.HALVES),
)
NETWORK_SWALLOWS = Fault(
    "requests that arrive and answers that do not for 8 s",
    Needs.SHARED,
    partial(_disturb_network, Mode.SWALLOWS),
)
FAILED_BY_HAND = Fault("state set to Failed by hand", Needs.SHARED, _fail_by_hand)
PREFECT_RESTARTED = Fault(
    "Prefect server, SIGKILL and started again", Needs.PREFECT, _restart_prefect
)
