"""How a driver tells Prefect that a run has ended: never over a state that stands already."""

import sys

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort, PrefectHTTPStatusError
from prefect.states import AwaitingRetry, Cancelled, Crashed
from prefect.utilities.engine import propose_state_sync

from prefect_ray_worker.driver.exits import DriverExit

STOPPED_OUTSIDE = (
    "The Ray Job was told to stop (SIGTERM) outside Prefect: by `ray job stop`, the dashboard, or "
    "a node that goes away. Run the flow again, or set "
    "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR=reschedule to have that done."
)


def cancelled(client: SyncPrefectClient, flow_run: FlowRun, message: str) -> None:
    """Mark a run Cancelled if it is still Cancelling."""
    state = client.read_flow_run(flow_run.id).state
    if state is not None and state.is_cancelling():
        _propose(client, flow_run, Cancelled(message=message))


def crashed(client: SyncPrefectClient, flow_run: FlowRun, message: str) -> State | None:
    """Mark a run Crashed if it is still Pending or Running; return the state if it took."""
    state = client.read_flow_run(flow_run.id).state
    if state is None or not (state.is_pending() or state.is_running()):
        return None
    return _propose(client, flow_run, Crashed(message=message))


def rescheduled(client: SyncPrefectClient, flow_run: FlowRun) -> None:
    """Have a run that is still Pending or Running tried again."""
    state = client.read_flow_run(flow_run.id).state
    if state is not None and (state.is_pending() or state.is_running()):
        _propose(client, flow_run, AwaitingRetry())


def without_api(exc: Exception, api_url: str) -> int:
    """Explain on the job's own output why the driver cannot talk to Prefect.

    Returns:
        The exit code by which the worker knows, and tells the user.
    """
    if isinstance(exc, PrefectHTTPStatusError):
        code = exc.response.status_code
        if code not in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise exc
        print(
            f"The Prefect API at {api_url} refused the credentials of the Ray node (HTTP {code}). "
            "Give the job a key in one of three ways: set PREFECT_API_KEY (or "
            "PREFECT_API_AUTH_STRING) in the environment of the Ray nodes; name the variable of "
            "the nodes that holds it in the worker's setting "
            "PREFECT_INTEGRATIONS_RAY_WORKER_NODE_SECRETS; or have the worker send its own in "
            "clear with PREFECT_INTEGRATIONS_RAY_WORKER_SEND_SECRETS=true.",
            file=sys.stderr,
        )
        return DriverExit.NOT_AUTHORIZED
    print(
        f"The Prefect API at {api_url} does not answer from the Ray node ({exc}). Set "
        "env.PREFECT_API_URL to an address that the cluster can reach; localhost means the "
        "node itself.",
        file=sys.stderr,
    )
    return DriverExit.API_UNREACHABLE


def _propose(client: SyncPrefectClient, flow_run: FlowRun, state: State) -> State | None:
    try:
        result = propose_state_sync(client, state, flow_run_id=flow_run.id)
    except Abort:
        return None
    return result if result.type == state.type else None
