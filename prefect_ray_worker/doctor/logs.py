"""Whether a job's log can be read from here, and by which of the two ways."""

from dataclasses import dataclass
from typing import Final

import anyio

from prefect_ray_worker.doctor.check import Check, Subject, failed, ok, skipped, warning
from prefect_ray_worker.errors import AgentUnreachable, JobsApiError, LogNotFound
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.logs import LogsClient, log_file_name
from prefect_ray_worker.ray_api.models import JobDetails

_WAYS_SECONDS: Final = 10.0
_ROOM: Final = 1_000_000


@dataclass(frozen=True)
class Output:
    """What a job has printed.

    Attributes:
        text: All of it; empty if it cannot be read.
        check: By which way it was read.
    """

    text: str
    check: Check


async def read_output(connection: Connection, job: JobDetails | None) -> Output:
    """Read the log of a job by the agent of its node, or else through the dashboard."""
    if job is None or job.driver_node_id is None or job.submission_id is None:
        return Output("", skipped(Subject.LOGS, "There is no log: the job has not started."))
    name = log_file_name(job.submission_id)
    agent, node = job.driver_agent_http_address, job.driver_node_id
    async with LogsClient(connection) as client:
        try:
            with anyio.fail_after(_WAYS_SECONDS):
                # Without an address, httpx says so as of any other that cannot be asked.
                piece = await client.from_agent(agent or "", name, start=0, room=_ROOM)
        except (AgentUnreachable, LogNotFound, TimeoutError) as exc:
            trouble = str(exc) or "no answer"
        else:
            read = ok(Subject.LOGS, f"The agent at {agent} serves the job's log.")
            return Output(piece.data.decode(errors="replace"), read)
        try:
            with anyio.fail_after(_WAYS_SECONDS):
                piece = await client.from_dashboard(node, name, lines=-1, skip=0, room=_ROOM)
        except (JobsApiError, TimeoutError) as exc:
            says = f"The job's log cannot be read ({str(exc) or 'no answer'})."
            advice = "Runs work, and what they print is not seen in Prefect."
            return Output("", failed(Subject.LOGS, says, advice))
    says = f"The job's log comes through the dashboard, as the agent does not serve it ({trouble})."
    detour = warning(
        Subject.LOGS,
        says,
        "Long logs are read more gently if this machine reaches the agents of the nodes.",
    )
    return Output(piece.data.decode(errors="replace"), detour)
