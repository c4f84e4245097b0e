"""How a driver tells Prefect that a run has ended: never over a state that stands already."""

import sys
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, PrefectHTTPStatusError
from prefect.states import AwaitingRetry, Cancelled, Crashed
from prefect.utilities.engine import propose_state_sync

from prefect_ray_worker.driver.claim import present_attempt
from prefect_ray_worker.driver.exits import DriverExit

STOPPED_OUTSIDE = (
    "The Ray Job was told to stop (SIGTERM) outside Prefect: by `ray job stop`, the dashboard, or "
    "a node that goes away. Run the flow again, or set "
    "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR=reschedule to have that done."
)


class Endings:
    """Ends one attempt at a run, unless the run has ended or gone on without it.

    Args:
        client: An open client.
        flow_run_id: The run.
        attempt: The attempt that this driver was started for.
    """

    def __init__(self, client: SyncPrefectClient, flow_run_id: UUID, attempt: str) -> None:
        self._client = client
        self._run_id = flow_run_id
        self._attempt = attempt

    def cancelled(self, message: str) -> None:
        """Mark the run Cancelled if it is still Cancelling."""
        state = self._open_state()
        if state is not None and state.is_cancelling():
            self._propose(Cancelled(message=message))

    def crashed(client: SyncPrefectClient, flow_run: FlowRun, message: str) -> State | None:
    """Mark a run Crashed if it has not ended; return the state if it took."""
    if not _is_ours(client.read_flow_run(flow_run.id)):
        return None
    return _propose(client, flow_run, Crashed(message=message))


def rescheduled(client: SyncPrefectClient, flow_run: FlowRun) -> None:
    """Have a run that has not ended tried again, by a worker."""
    present = client.read_flow_run(flow_run.id)
    if not _is_ours(present):
        return
    policy = present.empirical_policy
    if policy.retry_type == "in_process":
        # Left by an earlier retry; the server gives no worker such a run (3.8.8).
        policy.retry_type = "reschedule"
        client.update_flow_run(flow_run.id, empirical_policy=policy)
    _propose(client, flow_run, AwaitingRetry())


def _is_ours(flow_run: FlowRun) -> bool:
    """Say whether a run goes on in this process: also when it waits there for its next try."""
    state = flow_run.state
    if state is None:
        return False
    waits_here = flow_run.empirical_policy.retry_type == "in_process"
    return state.is_pending() or state.is_running() or (state.is_scheduled() and waits_here)


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
