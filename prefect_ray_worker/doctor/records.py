"""Whether records of finished jobs pile up: Ray keeps them for ever, and lists all each time."""

from typing import Any, Final

import anyio

from prefect_ray_worker.doctor.check import Check, Subject, ok, skipped, warning
from prefect_ray_worker.errors import JobsApiError
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import TERMINAL_STATUSES

_LIST_SECONDS: Final = 20.0
# A list of so many takes the head some 0.1 s each time that a worker looks (Ray 2.60).
_MANY: Final = 1000


async def look_at_records(client: JobsClient) -> Check:
    """Count the finished jobs that the cluster remembers."""
    finished = 0

    def counts(record: dict[str, Any]) -> bool:
        nonlocal finished
        finished += record.get("status") in TERMINAL_STATUSES
        return False  # the number is enough

    began = anyio.current_time()
    try:
        with anyio.fail_after(_LIST_SECONDS):
            await client.list(counts)
    except (JobsApiError, TimeoutError) as exc:
        why = str(exc) or f"no answer within {_LIST_SECONDS:g} s"
        return skipped(Subject.FINISHED_JOBS, f"The jobs cannot be listed ({why}).")
    says = (
        f"{finished} finished jobs are on record, and listing them takes "
        f"{anyio.current_time() - began:.1f} s."
    )
    if finished <= _MANY:
        return ok(Subject.FINISHED_JOBS, says)
    return warning(
        Subject.FINISHED_JOBS,
        says,
        "Set the job variable delete_job_after_seconds, and delete old ones (`ray job delete`).",
    )
