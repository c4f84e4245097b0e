"""Whether an attempt may run: asked of the Prefect API before any user code, and claimed there.

A network ghost, a queued stop that was lost, a re-run by hand: a driver can start when nobody
wants it any more, or twice. Exactly one driver of the present attempt gets past this check.
"""

from dataclasses import dataclass
from enum import Enum
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import Abort
from prefect.utilities.engine import propose_state_sync

from prefect_ray_worker.shared.ids import STARTING, attempt_name, present_claim


class Standing(Enum):
    """What a driver finds when it asks whether it may run."""

    GRANTED = "granted"
    """The run waits for this attempt, and no other driver can get it any more."""

    CANCELLING = "cancelling"
    """The run is being cancelled and has not started."""

    SETTLED = "settled"
    """The run has ended, is paused, waits for another attempt, or is run by another driver."""


@dataclass(frozen=True)
class Claim:
    """The answer, and the run as it was read for it.

    Attributes:
        standing: Whether to run.
        flow_run: The run.
        reason: Why not, in words.
    """

    standing: Standing
    flow_run: FlowRun
    reason: str = ""


def claim(client: SyncPrefectClient, flow_run: FlowRun, attempt: str) -> Claim:
    """Ask for the run on behalf of one attempt.

    Args:
        client: An open client.
        flow_run: The run, just read.
        attempt: The attempt that this driver was started for.
    """
    state = flow_run.state
    if state is None or state.type not in (StateType.PENDING, StateType.CANCELLING):
        name = state.name if state is not None else "without a state"
        return Claim(Standing.SETTLED, flow_run, f"the flow run is {name}")
    history = _history(client, flow_run.id)
    if _present_attempt(history) != attempt:
        return Claim(Standing.SETTLED, flow_run, "a newer attempt has taken the flow run over")
    if state.is_cancelling():
        return Claim(Standing.CANCELLING, flow_run, "the flow run is being cancelled")
    if _has_begun(history):
        # Should a worker call the run InfrastructurePending too late, it would be granted again.
        return Claim(Standing.SETTLED, flow_run, "another driver of this attempt has begun")
    starting: State[None] = State(type=StateType.PENDING, name=STARTING)
    try:
        # Prefect 3.8 grants Pending -> Pending only if the name changes: the second one aborts.
        granted = propose_state_sync(client, starting, flow_run_id=flow_run.id)
    except Abort as exc:
        return Claim(Standing.SETTLED, flow_run, f"Prefect did not grant it ({exc})")
    if granted.name != STARTING:
        return Claim(Standing.SETTLED, flow_run, f"the flow run is {granted.name}")
    flow_run.state = granted
    return Claim(Standing.GRANTED, flow_run)


def present_attempt(client: SyncPrefectClient, flow_run_id: UUID) -> str | None:
    """Return the name of the attempt that a run is at now."""
    return _present_attempt(_history(client, flow_run_id))


def _history(client: SyncPrefectClient, flow_run_id: UUID) -> list[State]:
    response = client.request("GET", "/flow_run_states/", params={"flow_run_id": str(flow_run_id)})
    return State.model_validate_list(response.json())


def _present_attempt(history: list[State]) -> str | None:
    claim_id = present_claim(history)
    return attempt_name(claim_id) if claim_id is not None else None


def _has_begun(history: list[State]) -> bool:
    """Say whether a driver of the present attempt has claimed the run."""
    claim_id = present_claim(history)
    began = next((state.timestamp for state in history if state.id == claim_id), None)
    return any(
        state.name == STARTING and began is not None and state.timestamp > began
        for state in history
    )
