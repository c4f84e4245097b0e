"""Checks from this machine: the dashboard, the driver's upload, the job's log, Ray's records."""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import anyio
import httpx

from prefect_ray_worker._version import OLDEST_RAY
from prefect_ray_worker.doctor.report import Check, CheckSubject, failed, ok, skipped, warning
from prefect_ray_worker.errors import (
    AgentUnreachable,
    JobsApiError,
    LogNotFound,
    NotAuthorized,
    TlsFailed,
)
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.logs import LogsClient, log_file_name
from prefect_ray_worker.ray_api.models import TERMINAL_STATUSES, ClusterVersion, JobDetails
from prefect_ray_worker.ray_api.tokens import TokenSource

# A dashboard answers in milliseconds; one that hangs must not cost the user minutes.
_ANSWER_SECONDS: Final = 10.0
# Rejected by every cluster that asks for a token; all others ignore it.
_WRONG_TOKEN: Final = "nobody"  # noqa: S105 (it is none)
_PEEK_SECONDS: Final = 3.0
_OF_A_LOCAL_RAY: Final = (
    "If a worker started this Ray, call the doctor with that worker's PREFECT_HOME. Or set "
    "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the token's file, which the run's log names."
)
_RAY_NUMBERS = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True)
class DashboardAnswer:
    """How the dashboard answered.

    Attributes:
        checks: The results.
        version: The answer; None if there was no usable one.
    """

    checks: tuple[Check, ...]
    version: ClusterVersion | None


async def examine_dashboard(client: JobsClient) -> DashboardAnswer:
    """Ask the dashboard for its version, and grade everything that the answer shows."""
    connection = client.connection
    began = anyio.current_time()
    try:
        with anyio.fail_after(_ANSWER_SECONDS):
            found = await client.version()
    except TimeoutError:
        silent = failed(
            CheckSubject.DASHBOARD,
            f"{connection.address} accepts the connection but does not answer within "
            f"{_ANSWER_SECONDS:g} s.",
            "Check that this is the dashboard's port (8265 by default) and that the head is not "
            "overloaded.",
        )
        return DashboardAnswer((silent,), None)
    except TlsFailed as exc:
        return DashboardAnswer((failed(CheckSubject.TLS, exc),), None)
    except NotAuthorized as exc:
        answers = ok(CheckSubject.DASHBOARD, f"{connection.address} answers.")
        way_in = _OF_A_LOCAL_RAY if connection.is_loopback else ""
        refused = failed(CheckSubject.AUTHENTICATION, exc, way_in)
        return DashboardAnswer((answers, _tls(connection), refused), None)
    except JobsApiError as exc:
        wrong_port = await _wrong_port(connection, exc)
        return DashboardAnswer((failed(CheckSubject.DASHBOARD, exc, wrong_port),), None)
    took = (anyio.current_time() - began) * 1000
    answers = ok(CheckSubject.DASHBOARD, f"{connection.address} answers in {took:.0f} ms.")
    checks = (answers, _tls(connection), await _authentication(connection), _ray(found))
    return DashboardAnswer(checks, found)


async def _wrong_port(connection: Connection, exc: JobsApiError) -> str:
    """Return what to do if the port is that of something else that people confuse; else nothing."""
    # Ray's GCS and Ray Client speak gRPC, whose first bytes are no HTTP/1.1.
    if "RemoteProtocolError" in str(exc) or "ReadError" in str(exc):
        return (
            "What listens there does not speak HTTP, like Ray's GCS (port 6379) and Ray Client "
            "(port 10001). Name the port of Ray's dashboard, 8265 by default."
        )
    try:
        async with httpx.AsyncClient(verify=connection.verify, timeout=_PEEK_SECONDS) as client:
            answer = await client.get(f"{connection.address.removesuffix('/api')}/api/health")
            is_prefect = answer.json() is True
    except (httpx.HTTPError, ValueError):
        return ""
    if not is_prefect:
        return ""
    return (
        "This is a Prefect server. Name the port of Ray's dashboard, 8265 by default, and set "
        "PREFECT_API_URL to the Prefect server."
    )


def _tls(connection: Connection) -> Check:
    if connection.address.startswith("https://"):
        if connection.verify:
            return ok(CheckSubject.TLS, "The certificate is trusted.")
        return warning(
            CheckSubject.TLS,
            "The certificate is not checked.",
            "Set `verify` of the `cluster` block, and `ca_file` for a private authority. Until "
            "then, anyone on the network path can read the token.",
        )
    if connection.is_loopback:
        return ok(CheckSubject.TLS, "Not needed: the cluster is on this machine.")
    return warning(
        CheckSubject.TLS,
        "The connection is not encrypted.",
        "Outside a trusted network, put a TLS proxy before the dashboard: Ray serves none itself.",
    )


async def _authentication(connection: Connection) -> Check:
    """Check whether the cluster also accepts a wrong token."""
    stranger = Connection(
        connection.address,
        TokenSource(literal=_WRONG_TOKEN),
        verify=connection.verify,
        ca_file=connection.ca_file,
    )
    try:
        async with JobsClient(stranger) as client:
            with anyio.fail_after(_ANSWER_SECONDS):
                await client.version()
    except (JobsApiError, TimeoutError):
        return ok(CheckSubject.AUTHENTICATION, "Our credentials are accepted.")
    if connection.is_loopback:
        return ok(CheckSubject.AUTHENTICATION, "The cluster asks for none; it is on this machine.")
    return warning(
        CheckSubject.AUTHENTICATION,
        "The cluster asks for no credentials: anyone who reaches the address can run code on it.",
        "Turn on token authentication (RAY_AUTH_MODE=token on all nodes, Ray 2.52 and later), or "
        "let only the worker reach the port.",
    )


def _ray(found: ClusterVersion) -> Check:
    try:
        here = f"{version('ray')} here; they need not match"
    except PackageNotFoundError:
        here = "none here, and none is needed"
    numbers = _RAY_NUMBERS.match(found.ray_version)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST_RAY:
        return failed(
            CheckSubject.RAY_VERSION,
            f"The cluster runs Ray {found.ray_version}.",
            f"Update it to {'.'.join(map(str, OLDEST_RAY))} or later.",
        )
    return ok(CheckSubject.RAY_VERSION, f"Ray {found.ray_version} in the cluster, {here}.")


_WAYS_SECONDS: Final = 10.0
_ROOM: Final = 1_000_000


@dataclass(frozen=True)
class ProbeOutput:
    """What the probe printed.

    Attributes:
        text: All of it; empty if it cannot be read.
        check: Where it was read from.
    """

    text: str
    check: Check


async def read_output(connection: Connection, job: JobDetails | None) -> ProbeOutput:
    """Read a job's log from the agent of its node, or else through the dashboard."""
    if job is None or job.driver_node_id is None or job.submission_id is None:
        return ProbeOutput(
            "", skipped(CheckSubject.LOGS, "There is no log: the job has not started.")
        )
    name = log_file_name(job.submission_id)
    agent, node = job.driver_agent_http_address, job.driver_node_id
    async with LogsClient(connection) as client:
        try:
            with anyio.fail_after(_WAYS_SECONDS):
                # httpx treats a missing address like any other that cannot be reached.
                piece = await client.from_agent(agent or "", name, start=0, room=_ROOM)
        except (AgentUnreachable, LogNotFound, TimeoutError) as exc:
            trouble = str(exc) or "no answer"
        else:
            read = ok(CheckSubject.LOGS, f"The agent at {agent} serves the job's log.")
            return ProbeOutput(piece.data.decode(errors="replace"), read)
        try:
            with anyio.fail_after(_WAYS_SECONDS):
                piece = await client.from_dashboard(node, name, lines=-1, skip=0, room=_ROOM)
        except (JobsApiError, TimeoutError) as exc:
            says = f"The job's log cannot be read ({str(exc) or 'no answer'})."
            advice = "Runs work, but what they print does not reach Prefect."
            return ProbeOutput("", failed(CheckSubject.LOGS, says, advice))
    says = f"The job's log comes through the dashboard, as the agent does not serve it ({trouble})."
    detour = warning(
        CheckSubject.LOGS,
        says,
        "Let this machine reach the agents of the nodes: long logs then cost the head less.",
    )
    return ProbeOutput(piece.data.decode(errors="replace"), detour)


_LIST_SECONDS: Final = 20.0
# Listing so many costs the head about 0.1 s each time a worker asks (Ray 2.60).
_MANY: Final = 1000


async def check_finished_jobs(client: JobsClient) -> Check:
    """Count the finished jobs on record: Ray keeps them for ever and lists all each time."""
    finished = 0

    def count(record: dict[str, Any]) -> bool:
        nonlocal finished
        finished += record.get("status") in TERMINAL_STATUSES
        return False  # keep none: the number is enough

    began = anyio.current_time()
    try:
        with anyio.fail_after(_LIST_SECONDS):
            await client.list(count)
    except (JobsApiError, TimeoutError) as exc:
        why = str(exc) or f"no answer within {_LIST_SECONDS:g} s"
        return skipped(CheckSubject.FINISHED_JOBS, f"The jobs cannot be listed ({why}).")
    says = (
        f"Finished jobs on record: {finished}. Listing takes {anyio.current_time() - began:.1f} s."
    )
    if finished <= _MANY:
        return ok(CheckSubject.FINISHED_JOBS, says)
    return warning(
        CheckSubject.FINISHED_JOBS,
        says,
        "Set the job variable delete_job_after_seconds, and remove old ones with `ray job delete`.",
    )
