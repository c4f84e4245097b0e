"""Asks Prefect whether this attempt may run, before any user code, and claims the run there.

A request that arrived late, a queued stop that was lost, a re-run by hand: a driver can start when
its run is not wanted any more, or twice. Exactly one driver of the present attempt gets past this.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import Abort, ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect.utilities.engine import propose_state_sync

from prefect_ray_worker.diagnosis.text import clean
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import Diagnosis, diagnosed
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.ids import STARTING, attempt_name, present_claim
from prefect_ray_worker.shared.loopback import is_loopback_url
from prefect_ray_worker.shared.run_rules import Patience

T = TypeVar("T")

_PATIENCE_SECONDS = 60.0
_LONGEST_REASON = 400
_TRUST = (
    "Set env.PREFECT_API_SSL_CERT_FILE to a file on the nodes with the certificate authorities of "
    "the API, or put them into the trust store of the nodes' image."
)


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


class ApiTrouble(Exception):
    """Raised when a driver cannot ask Prefect.

    Attributes:
        code: The exit code by which the worker knows.
        diagnosis: What to tell the user.
    """

    def __init__(self, code: DriverExit, diagnosis: Diagnosis) -> None:
        super().__init__(str(diagnosis))
        self.code = code
        self.diagnosis = diagnosis


def open_client() -> SyncPrefectClient:
    """Return a client for the Prefect API; the caller enters it.

    Raises:
        ApiTrouble: The file of certificate authorities cannot be used.
    """
    try:
        return get_client(sync_client=True)
    except OSError as exc:
        # Prefect's client reads it also for a plain http API, and Python does not name it (3.11).
        path = get_current_settings().api.ssl_cert_file
        why = diagnosed(
            Category.PREFECT_SETTING_INVALID,
            f"PREFECT_API_SSL_CERT_FILE names {path}, which {_here()} cannot use "
            f"({_in_a_line(exc)}).",
            advice="Put the file onto every node, or set env.PREFECT_API_SSL_CERT_FILE to a path "
            "that the nodes have.",
        )
        raise ApiTrouble(DriverExit.BAD_SETTING, why) from None


def claim(client: SyncPrefectClient, flow_run_id: UUID, attempt: str) -> Claim:
    """Ask for a run on behalf of one attempt, for up to a minute where the API does not answer.

    Args:
        client: An open client.
        flow_run_id: The run.
        attempt: The attempt that this driver was started for.

    Raises:
        ApiTrouble: Prefect cannot be asked, or does not know the run.
    """
    try:
        flow_run = _patiently(lambda: client.read_flow_run(flow_run_id))
        return _claimed(client, flow_run, attempt)
    # A ValueError: what has answered is no JSON, or describes no flow run.
    except (ObjectNotFound, PrefectHTTPStatusError, httpx.TransportError, ValueError) as exc:
        raise trouble_with_api(exc, str(client.api_url)) from exc


def _claimed(client: SyncPrefectClient, flow_run: FlowRun, attempt: str) -> Claim:
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


def trouble_with_api(exc: Exception, api_url: str) -> ApiTrouble:
    """Explain why Prefect cannot be asked.

    Args:
        exc: What asking has raised.
        api_url: The API's URL, as the driver has it.
    """
    place, here = clean(api_url)[0], _here()  # no credentials
    if isinstance(exc, PrefectHTTPStatusError):
        code = exc.response.status_code
        if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            cause = f"The Prefect API at {place} rejected the credentials of {here} (HTTP {code})."
            why = diagnosed(Category.PREFECT_API_UNAUTHORIZED, cause)
            return ApiTrouble(DriverExit.NOT_AUTHORIZED, why)
    is_silent = isinstance(exc, httpx.TransportError) or (
        isinstance(exc, PrefectHTTPStatusError)
        and exc.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR
    )
    if is_silent:
        hint = "; localhost means the node itself there" if is_loopback_url(api_url) else ""
        cause = f"The Prefect API at {place} does not answer {here} ({_in_a_line(exc)}){hint}."
        advice = _TRUST if "CERTIFICATE_VERIFY_FAILED" in str(exc) else None
        why = diagnosed(Category.PREFECT_API_UNREACHABLE, cause, advice=advice)
        return ApiTrouble(DriverExit.API_UNREACHABLE, why)
    cause = (
        f"What answers {here} at {place} does not know the flow run, or is no Prefect API "
        f"({_in_a_line(exc)})."
    )
    return ApiTrouble(DriverExit.WRONG_API, diagnosed(Category.PREFECT_API_WRONG, cause))


def _patiently(ask: Callable[[], T]) -> T:
    patience = Patience(_PATIENCE_SECONDS, now=time.monotonic())
    while True:
        try:
            return ask()
        except httpx.TransportError:
            delay = patience.wait(time.monotonic())
            if delay is None:
                raise
            time.sleep(delay)


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


def _here() -> str:
    return f"the Ray node {socket.gethostname()}"


def _in_a_line(exc: Exception) -> str:
    text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return " ".join(" ".join(clean(text)).split())[:_LONGEST_REASON]
