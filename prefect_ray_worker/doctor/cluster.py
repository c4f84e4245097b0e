"""What can be said of a cluster from here: does it answer, encrypted, to us, and with which Ray."""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import anyio

from prefect_ray_worker.doctor.check import Check, Subject, failed, ok, warning
from prefect_ray_worker.errors import JobsApiError, NotAuthorized, TlsFailed
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import ClusterVersion
from prefect_ray_worker.ray_api.tokens import TokenSource

# A dashboard answers this in milliseconds; one that hangs is not to cost its user minutes.
_ANSWER_SECONDS: Final = 10.0
# The first with version 4 of the Jobs REST API, `DELETE` included.
_OLDEST_RAY: Final = (2, 10)
# Refused by every cluster that asks for a token, and not read by any other.
_NO_TOKEN: Final = "nobody"  # noqa: S105 (it is none)
_RAY_NUMBERS = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True)
class Seen:
    """A cluster, as it has answered.

    Attributes:
        checks: What was looked at.
        version: Its answer; None if there was none that is of use.
    """

    checks: tuple[Check, ...]
    version: ClusterVersion | None


async def look_at_cluster(client: JobsClient) -> Seen:
    """Ask the dashboard for its version, and read all from how it answers."""
    connection = client.connection
    began = anyio.current_time()
    try:
        with anyio.fail_after(_ANSWER_SECONDS):
            found = await client.version()
    except TimeoutError:
        silent = failed(
            Subject.DASHBOARD,
            f"{connection.address} takes the connection and does not answer within "
            f"{_ANSWER_SECONDS:g} s.",
            "Check that this is the port of the dashboard (8265 by default), and whether the head "
            "is overloaded.",
        )
        return Seen((silent,), None)
    except TlsFailed as exc:
        return Seen((failed(Subject.TLS, exc),), None)
    except NotAuthorized as exc:
        answers = ok(Subject.DASHBOARD, f"{connection.address} answers.")
        return Seen((answers, _tls(connection), failed(Subject.AUTHENTICATION, exc)), None)
    except JobsApiError as exc:
        return Seen((failed(Subject.DASHBOARD, exc),), None)
    took = (anyio.current_time() - began) * 1000
    answers = ok(Subject.DASHBOARD, f"{connection.address} answers in {took:.0f} ms.")
    checks = (answers, _tls(connection), await _authentication(connection), _ray(found))
    return Seen(checks, found)


def _tls(connection: Connection) -> Check:
    if connection.address.startswith("https://"):
        if connection.verify:
            return ok(Subject.TLS, "The certificate is trusted.")
        return warning(
            Subject.TLS,
            "The certificate is not checked.",
            "Set verify of the `cluster` block, with ca_file for a private authority: now anybody "
            "in between can read the token.",
        )
    if connection.is_loopback:
        return ok(Subject.TLS, "Not needed: the cluster is on this machine.")
    return warning(
        Subject.TLS,
        "The cluster is spoken to in clear.",
        "Outside a network that you trust, put TLS before the dashboard: Ray itself has none.",
    )


async def _authentication(connection: Connection) -> Check:
    """Say whether the cluster would also take a stranger."""
    stranger = Connection(
        connection.address,
        TokenSource(literal=_NO_TOKEN),
        verify=connection.verify,
        ca_file=connection.ca_file,
    )
    try:
        async with JobsClient(stranger) as client:
            with anyio.fail_after(_ANSWER_SECONDS):
                await client.version()
    except (JobsApiError, TimeoutError):
        return ok(Subject.AUTHENTICATION, "Our credentials are accepted.")
    if connection.is_loopback:
        return ok(Subject.AUTHENTICATION, "None is asked for, on this machine.")
    return warning(
        Subject.AUTHENTICATION,
        "The cluster asks for no credentials: whoever reaches the address can run code on it.",
        "Turn on token authentication (RAY_AUTH_MODE=token on all nodes, Ray 2.52 and later), or "
        "let only the worker reach the port.",
    )


def _ray(found: ClusterVersion) -> Check:
    try:
        here = f"{version('ray')} here; they need not match"
    except PackageNotFoundError:
        here = "none here, and none is needed"
    numbers = _RAY_NUMBERS.match(found.ray_version)
    if numbers and (int(numbers[1]), int(numbers[2])) < _OLDEST_RAY:
        return failed(
            Subject.RAY_VERSION,
            f"The cluster has Ray {found.ray_version}.",
            f"Update it to {'.'.join(map(str, _OLDEST_RAY))} or later.",
        )
    return ok(Subject.RAY_VERSION, f"Ray {found.ray_version} in the cluster, {here}.")
