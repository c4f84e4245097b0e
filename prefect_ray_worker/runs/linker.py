"""`link`: puts the way to the job's page in the Ray dashboard onto the flow run, as an artifact."""

import logging

import anyio

from prefect_ray_worker.runs.run import Attempt

_PREFECT_SECONDS = 10.0

_log = logging.getLogger("prefect.workers.ray.linker")


async def link(attempt: Attempt, *, was_there: bool) -> None:
    """Give a run the link to its job, unless it has it. Never raises.

    Args:
        attempt: The attempt.
        was_there: Whether another worker may have done so: it then has to be asked.
    """
    page = attempt.dashboard_page
    description = f"The Ray Job of this run, `{attempt.job_id}`, in the dashboard of its cluster."
    try:
        async with attempt.around.links:
            with anyio.fail_after(_PREFECT_SECONDS):
                await attempt.around.flow_runs.link(
                    attempt.run_id,
                    page,
                    text="Ray dashboard: the job",
                    description=description,
                    may_be_there=was_there,
                )
    except TimeoutError:
        _log.warning(
            "The run %s was not given its link: the Prefect API did not answer within %g s.",
            attempt.run_id,
            _PREFECT_SECONDS,
        )
    except Exception as exc:  # noqa: BLE001 (the run goes on without; the link is in its log)
        _log.warning("The run %s was not given its link: %s", attempt.run_id, exc)
