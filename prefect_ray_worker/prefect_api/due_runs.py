"""Why no worker has taken a run that is due."""

from prefect.client.schemas.objects import WorkPool


def why_not_taken(
    state_name: str | None, message: str | None, pool: WorkPool, *, has_worker: bool
) -> str:
    """Return what a due run waits for, with the command that helps where there is one.

    Args:
        state_name: Name of the run's state, which is of the type Scheduled.
        message: The state's message.
        pool: The run's work pool.
        has_worker: Whether a worker of the pool is online.
    """
    if pool.is_paused:
        return f"The work pool is paused: `prefect work-pool resume {pool.name}`."
    if not has_worker:
        return f"No worker of the pool is online: `prefect worker start --pool {pool.name}`."
    limit, slots = pool.concurrency_limit, pool.active_slots or 0
    if limit is not None and slots >= limit:
        return f"A slot of the work pool: {slots} of {limit} are taken."
    if state_name == "AwaitingConcurrencySlot":
        return message or "A slot of its deployment's limit."
    return "A worker's next look, or a slot of its work queue or of a worker's --limit."
