"""Plays pairs of a fault and a stage, and checks what came of each."""

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from prefect.client.schemas.objects import StateType

from tests.integration.harness import settings_of
from tests.resilience.cluster import cluster
from tests.resilience.faults import Needs
from tests.resilience.killable_server import KillableServer
from tests.resilience.kuberay import clusters_made, new_kubernetes_world, no_cluster_left
from tests.resilience.pairs import Pair
from tests.resilience.scene import STEADY, VICTIM, Scene, World, new_world

_SHARED = frozenset({Needs.SHARED, Needs.WORKER})
_GONE_SECONDS = 150.0
# A sweep leaves a cluster for 2 min after the end of its run, and comes about once a minute.
_SWEPT_SECONDS = 300.0


@dataclass(frozen=True)
class Result:
    """What came of a pair.

    Attributes:
        pair: The pair.
        state: How the run ended; None if it did not.
        executions: How often the user's code was begun.
        cancellation_hooks: How often its `on_cancellation` hook was begun.
        message: Of the final state.
        settled: Seconds from the fault to the final state; None if that was there before.
        gone: Seconds from the fault until no process of the run was left, and no RayCluster.
        wrong: What is not as it has to be; empty if all is.
    """

    pair: Pair
    state: StateType | None = None
    executions: int = 0
    cancellation_hooks: int = 0
    message: str = ""
    settled: float | None = None
    gone: float | None = None
    wrong: str = ""


async def play(world: World, pair: Pair) -> Result:
    """Bring a run to a stage, strike, let it go on, and look at what came of it."""
    number = len(list(world.folder.iterdir()))
    hurts_worker = pair.fault.hurts_worker
    scene = Scene(
        world,
        world.folder / f"run-{number}",
        queue=VICTIM if hurts_worker else STEADY,
        variables=pair.variables,
    )
    with ExitStack() as stack:
        if hurts_worker:
            stack.enter_context(world.worker(VICTIM))
        try:
            return await _play(scene, pair)
        except Exception as exc:  # one pair that cannot be played is not to hide all others
            return await _failed(scene, pair, f"{type(exc).__name__}: {exc}")
        finally:
            await world.between.mend()
            world.between.release_submission()
            for sign in ("go", "go-hooks"):
                if scene.folder.exists():
                    scene.let(sign)


async def _play(scene: Scene, pair: Pair) -> Result:
    await pair.stage.reach(scene)
    before = await scene.read()
    struck_at, began = time.time(), time.monotonic()
    await pair.fault.strike(scene)
    if pair.executions > 1:
        await scene.marked("executions", pair.executions)
    if pair.state in (StateType.COMPLETED, StateType.CANCELLED):
        await pair.stage.leave(scene)
    run = await scene.settled(pair.within)
    await scene.all_gone(_GONE_SECONDS)
    if scene.world.kubernetes is not None:
        await no_cluster_left(scene.world.kubernetes, _SWEPT_SECONDS)
    gone = time.monotonic() - began
    await scene.leaves_no_task_running()
    if pair.state is StateType.COMPLETED:
        await scene.told("the flow returns", *(f"{name} is over" for name in scene.marks("over")))
    final = await scene.read()
    assert run.state is not None
    assert final.state is not None
    was_final = before.state is not None and before.state.is_final()
    result = Result(
        pair,
        state=final.state.type,
        executions=len(scene.marks("executions")),
        cancellation_hooks=len(scene.marks("on_cancellation")),
        message=final.state.message or "",
        settled=None if was_final else final.state.timestamp.timestamp() - struck_at,
        gone=gone,
    )
    made = None if scene.world.kubernetes is None else clusters_made(scene.world.kubernetes)
    return replace(result, wrong=_wrong_with(result, made))


def _wrong_with(result: Result, clusters: int | None) -> str:
    pair = result.pair
    hooks = 1 if result.state is StateType.CANCELLED and pair.executions else 0
    wrong = [
        f"{what} is {found!r}, not {wanted!r}"
        for what, found, wanted in (
            ("the state", result.state, pair.state),
            ("the number of executions", result.executions, pair.executions),
            ("the number of cancellation hooks", result.cancellation_hooks, hooks),
            ("the number of Rays", clusters, None if clusters is None else pair.executions),
        )
        if found != wanted
    ]
    if pair.says not in result.message:
        wrong.append(f"{pair.says!r} is not in {result.message!r}")
    return "; ".join(wrong)


async def _failed(scene: Scene, pair: Pair, wrong: str) -> Result:
    try:
        state = (await scene.read()).state
        return Result(
            pair,
            state=state.type if state is not None else None,
            executions=len(scene.marks("executions")),
            message=(state.message or "") if state is not None else "",
            wrong=wrong,
        )
    except Exception as exc:  # the run was not even created, or nobody can be asked
        return Result(pair, wrong=f"{wrong} ({exc!r})")


@asynccontextmanager
async def world_for(server: KillableServer, needs: Needs, folder: Path) -> AsyncIterator[World]:
    """Set up what a fault needs."""
    if needs in (Needs.KUBERNETES, Needs.KUBERNETES_WORKER):
        async with new_kubernetes_world(server, folder) as world:
            yield world
        return
    with cluster(node=needs in (Needs.NODE, Needs.REDIS), redis=needs is Needs.REDIS) as running:
        async with new_world(server, running, folder, ends=needs is Needs.END) as world:
            yield world


async def play_all(pairs: Iterable[Pair], folder: Path) -> AsyncIterator[Result]:
    """Play pairs in turn; those that leave the cluster alone share one."""
    count = 0
    for on_file, group in groupby(pairs, lambda p: p.fault.needs is Needs.PREFECT):
        server = KillableServer(folder / f"server-{count}", in_memory=not on_file)
        home = folder / f"home-{count}"
        with server, settings_of(server.api_url, home, PREFECT_WORKER_QUERY_SECONDS="1"):
            async with AsyncExitStack() as shared:
                world: World | None = None
                for pair in group:
                    count += 1
                    place = folder / f"world-{count}"
                    if pair.fault.needs in _SHARED or on_file:
                        if world is None:
                            world = await shared.enter_async_context(
                                world_for(server, pair.fault.needs, place)
                            )
                        yield await play(world, pair)
                        continue
                    async with world_for(server, pair.fault.needs, place) as own:
                        yield await play(own, pair)
