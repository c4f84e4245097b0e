"""Asks Prefect whether this attempt may run, before any user code, and claims the run there.

A request that arrived late, a queued stop that was lost, a re-run by hand: a driver can start when
its run is not wanted any more, or twice. Exactly one driver of the present attempt gets past this.
"""

import socket
from dataclasses import dataclass
from enum import Enum
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import Abort, ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, get_current_settings
from prefect.utilities.engine import propose_state_sync

from prefect_ray_worker.driver.api import (
    ApiTrouble,
    in_a_line,
    new_patience,
    patiently,
    trouble_with_api,
)
from prefect_ray_worker.prefect_api.answers import why_unsendable
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import diagnosed
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.ids import STARTING, attempt_name, present_claim
from prefect_ray_worker.shared.masking import masked
from prefect_ray_worker.shared.run_rules import Patience


class Standing(Enum):
    """What Prefect answers a driver that asks whether it may run."""

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


def open_client() -> SyncPrefectClient:
    """Return a client for the Prefect API; the caller enters it.

    Raises:
        ApiTrouble: There is no URL, or it is none, or the file of certificate authorities cannot be
            used.
    """
    try:
        return get_client(sync_client=True)
    except OSError as exc:
        # Prefect's client reads it also for a plain http API, and Python does not name it (3.11).
        path = get_current_settings().api.ssl_cert_file
        why = diagnosed(
            Category.PREFECT_SETTING_INVALID,
            f"PREFECT_API_SSL_CERT_FILE names {path}, which the Ray node {socket.gethostname()} "
            f"cannot use ({in_a_line(exc)}).",
            advice="Put the file onto every node, or set env.PREFECT_API_SSL_CERT_FILE to a path "
            "that the nodes have.",
        )
        raise ApiTrouble(DriverExit.BAD_SETTING, why) from None
    except httpx.InvalidURL as exc:
        # What it quotes can be a part of a password.
        reason, place = str(exc).partition(": ")[0], masked(PREFECT_API_URL.value() or "")
        why = diagnosed(
            Category.PREFECT_SETTING_INVALID,
            f"PREFECT_API_URL is {place!r} on the Ray node {socket.gethostname()}, which is no URL "
            f"({reason}).",
            advice="Set env.PREFECT_API_URL to a URL such as http://prefect.example:4200/api.",
        )
        raise ApiTrouble(DriverExit.BAD_SETTING, why) from None
    except ValueError as exc:  # no PREFECT_API_URL, or a key that is not ASCII
        if why_unsendable(exc) is not None:
            raise trouble_with_api(exc, "") from None
        why = diagnosed(Category.PREFECT_SETTING_INVALID, in_a_line(exc))
        raise ApiTrouble(DriverExit.BAD_SETTING, why) from None


def claim(client: SyncPrefectClient, flow_run_id: UUID, attempt: str) -> Claim:
    """Ask for a run on behalf of one attempt, for up to two minutes if the API does not answer.

    Args:
        client: An open client.
        flow_run_id: The run.
        attempt: The attempt that this driver was started for.

    Raises:
        ApiTrouble: Prefect cannot be asked, or does not know the run.
    """
    patience = new_patience()
    try:
        flow_run = patiently(lambda: client.read_flow_run(flow_run_id), patience)
        return _claimed(client, flow_run, attempt, patience)
    # A ValueError: what has answered is no JSON, or describes no flow run.
    except (ObjectNotFound, PrefectHTTPStatusError, httpx.TransportError, ValueError) as exc:
        raise trouble_with_api(exc, str(client.api_url)) from exc


def _claimed(
    client: SyncPrefectClient, flow_run: FlowRun, attempt: str, patience: Patience
) -> Claim:
    state = flow_run.state
    if state is None or state.type not in (StateType.PENDING, StateType.CANCELLING):
        name = state.name if state is not None else "without a state"
        return Claim(Standing.SETTLED, flow_run, f"the flow run is {name}")
    history = patiently(lambda: _history(client, flow_run.id), patience)
    if _present_attempt(history) != attempt:
        return Claim(Standing.SETTLED, flow_run, "a newer attempt has taken the flow run over")
    if state.is_cancelling():
        return Claim(Standing.CANCELLING, flow_run, "the flow run is being cancelled")
    if _has_begun(history):
        # Should a worker call the run InfrastructurePending too late, it would be granted again.
        return Claim(Standing.SETTLED, flow_run, "another driver of this attempt has begun")
    try:
        granted = _proposed(client, flow_run.id, patience)
    except Abort as exc:
        return Claim(Standing.SETTLED, flow_run, f"Prefect did not grant it ({exc})")
    if granted.name != STARTING:
        return Claim(Standing.SETTLED, flow_run, f"the flow run is {granted.name}")
    flow_run.state = granted
    return Claim(Standing.GRANTED, flow_run)


def _proposed(client: SyncPrefectClient, flow_run_id: UUID, patience: Patience) -> State:
    """Propose the state that Prefect grants to one driver only; return what it has answered.

    Should the answer get lost, the driver recognises its own state by the message.
    """
    message = f"A driver starts on the Ray node {socket.gethostname()} ({uuid4().hex[:8]})."
    asked = False

    def propose() -> State:
        nonlocal asked
        if asked:
            state = client.read_flow_run(flow_run_id).state
            if state is not None and state.name == STARTING and state.message == message:
                return state
        asked = True
        starting: State[None] = State(type=StateType.PENDING, name=STARTING, message=message)
        # Prefect 3.8 grants Pending -> Pending only if the name changes: the second one aborts.
        return propose_state_sync(client, starting, flow_run_id=flow_run_id)

    return patiently(propose, patience)


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
    """Return whether a driver of the present attempt has claimed the run."""
    claim_id = present_claim(history)
    began = next((state.timestamp for state in history if state.id == claim_id), None)
    return any(
        state.name == STARTING and began is not None and state.timestamp > began
        for state in history
    )
