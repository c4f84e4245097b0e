"""How a driver tells Prefect that a run has ended: never over a state that stands already."""

from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.states import AwaitingRetry, Cancelled, Crashed
from prefect.utilities.engine import propose_state_sync

from prefect_ray_worker.driver.claim import present_attempt
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import diagnosed

STOPPED_OUTSIDE = str(
    diagnosed(
        Category.STOPPED_OUTSIDE,
        "The Ray Job was told to stop (SIGTERM) outside Prefect: by `ray job stop`, the dashboard, "
        "or a node that goes away.",
    )
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
        state = self._client.read_flow_run(self._run_id).state
        if state is not None and state.is_cancelling() and self._is_present():
            self._propose(Cancelled(message=message))

    def crashed(self, message: str) -> State | None:
        """Mark the run Crashed if it has not ended; return the state if it took."""
        return self._propose(Crashed(message=message)) if self._goes_on_here() else None

    def rescheduled(self) -> None:
        """Have a run that has not ended tried again, by a worker."""
        if not self._goes_on_here():
            return
        policy = self._client.read_flow_run(self._run_id).empirical_policy
        if policy.retry_type == "in_process":
            # Left by an earlier retry; the server gives no worker such a run (3.8.8).
            policy.retry_type = "reschedule"
            self._client.update_flow_run(self._run_id, empirical_policy=policy)
        self._propose(AwaitingRetry())

    def _goes_on_here(self) -> bool:
        """Say whether the run goes on in this attempt: also when it waits for its next try."""
        run = self._client.read_flow_run(self._run_id)
        if run.state is None or not self._is_present():
            return False
        waits_here = run.state.is_scheduled() and run.empirical_policy.retry_type == "in_process"
        return run.state.is_pending() or run.state.is_running() or waits_here

    def _is_present(self) -> bool:
        return present_attempt(self._client, self._run_id) == self._attempt

    def _propose(self, state: State) -> State | None:
        try:
            result = propose_state_sync(self._client, state, flow_run_id=self._run_id)
        except Abort:
            return None
        return result if result.type == state.type else None
