"""`claim`: asks the Prefect server for a run, so that one worker submits it."""

from logging import Logger, LoggerAdapter
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort
from prefect.states import Pending
from prefect.utilities.engine import propose_state


async def claim(
    client: PrefectClient, flow_run: FlowRun, log: "Logger | LoggerAdapter[Any]"
) -> UUID | None:
    """Return the id of the claim that the server grants on a run; None if it grants none.

    Prefect's own worker forgets the id (3.8.8). Without it, nobody can tell this claim from the one
    of another worker, which the server grants as well once the run has ended.

    Args:
        client: An open client.
        flow_run: The run.
        log: Logs to the run.

    Raises:
        Exception: The server did not answer, or with an error.
    """
    try:
        granted = await propose_state(client, Pending(), flow_run_id=flow_run.id)
    except Abort as exc:
        log.info("Aborted submission of flow run '%s'. The server says: %s", flow_run.id, exc)
        return None
    if not granted.is_pending():
        why = "Aborted submission of flow run '%s': the server has made it %s."
        log.info(why, flow_run.id, granted.name)
        return None
    return granted.id
