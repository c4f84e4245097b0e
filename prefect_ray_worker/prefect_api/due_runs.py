"""Which runs workers are given, and why none has taken one that is due."""

import shlex
from typing import Any

from prefect.client.schemas.objects import (
    FlowRunPolicy,
    State,
    WorkPool,
    WorkQueue,
    WorkQueueStatus,
)

from prefect_ray_worker.shared.run_rules import RETRY_TYPE_OF_WORKERS


def policy_for_workers(policy: FlowRunPolicy, state: State[Any] | None) -> FlowRunPolicy | None:
    """Return the policy that a run needs before it is scheduled for a worker; None if it has it.

    A retry of the flow in its process leaves one with which no worker is given the run. A pause
    leaves its key: the server takes the same pause of the next attempt for one that was resumed,
    and lets the flow pass. It forgets keys only if a run leaves a terminal state without `force`
    (3.8.8).

    Args:
        policy: The run's empirical policy.
        state: The run's state, which it leaves.
    """
    retry_type, keys = policy.retry_type, policy.pause_keys or set()
    if retry_type == "in_process":
        retry_type = RETRY_TYPE_OF_WORKERS
    if state is not None and state.is_final():
        keys = set[str]()
    elif state is not None and state.is_paused():
        keys = keys - {state.state_details.pause_key or ""}
    needed = policy.model_copy(update={"retry_type": retry_type, "pause_keys": keys})
    return needed if needed != policy else None


def why_not_taken(
    state_name: str | None,
    message: str | None,
    pool: WorkPool,
    queue: WorkQueue | None,
    *,
    has_worker: bool,
) -> str:
    """Return what a due run waits for, with the command that helps where there is one.

    Args:
        state_name: Name of the run's state, which is of the type Scheduled.
        message: The state's message.
        pool: The run's work pool.
        queue: The run's work queue; None if it is not known.
        has_worker: Whether a worker of the pool is online.
    """
    of_pool = f"--pool {shlex.quote(pool.name)}"
    if pool.is_paused:
        return f"The work pool is paused: `prefect work-pool resume {shlex.quote(pool.name)}`."
    if queue is not None and queue.is_paused:
        name = shlex.quote(queue.name)
        return f"Its work queue is paused: `prefect work-queue resume {name} {of_pool}`."
    if not has_worker:
        return f"No worker of the pool is online: `prefect worker start {of_pool}`."
    # The server says so once nobody has polled the queue for a minute (3.8.8).
    if queue is not None and queue.status == WorkQueueStatus.NOT_READY:
        name = shlex.quote(queue.name)
        return (
            f"No worker polls its work queue: `prefect worker start {of_pool} --work-queue {name}`."
        )
    if _is_full(pool):
        return f"A slot of the work pool: {_taken(pool)}."
    if queue is not None and _is_full(queue):
        return f"A slot of its work queue {queue.name!r}: {_taken(queue)}."
    if state_name == "AwaitingConcurrencySlot":
        return message or "A slot of its deployment's limit."
    of_queue = "" if queue is not None else "of its work queue or "
    return f"A worker's next look, or a slot {of_queue}of a worker's --limit."


def _is_full(place: WorkPool | WorkQueue) -> bool:
    limit = place.concurrency_limit
    return limit is not None and (place.active_slots or 0) >= limit


def _taken(place: WorkPool | WorkQueue) -> str:
    return f"{place.active_slots or 0} of {place.concurrency_limit} are taken"
