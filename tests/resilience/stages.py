"""The six stages of a run: how it is brought there and held, and how it is let go."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from prefect.client.schemas.objects import StateType
from prefect.states import Paused

from tests.resilience.cluster import SLOT
from tests.resilience.scene import PATIENCE_SECONDS, Scene


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes:
        name: In the table.
        meaning: What is true while a run is held there.
        reach: Brings the run of a scene there.
        leave: Lets it go on to its end.
    """

    name: str
    meaning: str
    reach: Callable[[Scene], Awaitable[None]]
    leave: Callable[[Scene], Awaitable[None]]


async def _reach_submitting(scene: Scene) -> None:
    scene.world.between.hold_next_submission()
    await scene.start()
    await scene.world.between.holds_one(PATIENCE_SECONDS)


async def _leave_submitting(scene: Scene) -> None:
    scene.world.between.release_submission()
    scene.let("go")


async def _reach_pending(scene: Scene) -> None:
    await scene.occupy_slot()
    await scene.start(entrypoint_resources={SLOT: 1})
    await scene.said("is PENDING")


async def _leave_pending(scene: Scene) -> None:
    await scene.free_slot()
    scene.let("go")


async def _reach_running(scene: Scene) -> None:
    await scene.start()
    await scene.marked("executions")
    await scene.said("is RUNNING")


async def _leave_running(scene: Scene) -> None:
    scene.let("go")


async def _reach_cancelling(scene: Scene) -> None:
    await _reach_running(scene)
    scene.let("hold-hooks")
    await scene.world.pool.cancel(scene.run_id)
    await scene.marked("on_cancellation")


async def _reach_finishing(scene: Scene) -> None:
    await _reach_running(scene)
    scene.let("hold-hooks")
    scene.let("go")
    await scene.marked("on_completion")
    await scene.world.pool.wait_for(scene.run_id, StateType.COMPLETED)


async def _reach_paused(scene: Scene) -> None:
    await _reach_running(scene)
    await scene.world.pool.client.set_flow_run_state(scene.run_id, Paused(timeout_seconds=1800))


async def _leave_paused(scene: Scene) -> None:
    await scene.world.pool.client.resume_flow_run(scene.run_id)
    scene.let("go")


async def _let_hooks_go(scene: Scene) -> None:
    scene.let("go-hooks")


SUBMITTING = Stage(
    "submitting",
    "the worker has claimed the run, and its POST is on the way to the head",
    _reach_submitting,
    _leave_submitting,
)
PENDING = Stage(
    "pending",
    "Ray has the job, but no resources for it",
    _reach_pending,
    _leave_pending,
)
RUNNING = Stage("running", "the user's code runs", _reach_running, _leave_running)
PAUSED = Stage(
    "paused",
    "the run is Paused, and its driver waits for it to be resumed",
    _reach_paused,
    _leave_paused,
)
CANCELLING = Stage(
    "cancelling",
    "the run is Cancelling, and the driver is in an `on_cancellation` hook",
    _reach_cancelling,
    _let_hooks_go,
)
FINISHING = Stage(
    "finishing",
    "the user's code has returned, Prefect has the result, and the driver is in an "
    "`on_completion` hook",
    _reach_finishing,
    _let_hooks_go,
)
STAGES = (SUBMITTING, PENDING, RUNNING, PAUSED, CANCELLING, FINISHING)
