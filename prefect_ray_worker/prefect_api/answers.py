"""What an error of the Prefect API means, in one place, and how to wait where waiting helps."""

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from logging import Logger, LoggerAdapter
from typing import TypeVar

import anyio
import httpx
from prefect.exceptions import ObjectNotFound

from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.shared.masking import masked
from prefect_ray_worker.shared.run_rules import Patience, is_own_not_found, is_passing

T = TypeVar("T")

# No server means more than that, and a run waits for what we ask.
_LONGEST_WAIT_SECONDS = 300.0
# How long Prefect may be busy or away before its loops count a failure; twelve end a worker.
_LOOP_SECONDS, _ONCE_SECONDS = 600.0, 60.0
# Longer than any restart or upgrade of a Prefect server.
_RUN_SECONDS = 3600.0

_log = logging.getLogger("prefect.workers.ray.flow_runs")


def is_gone(exc: ObjectNotFound) -> bool:
    """Return whether Prefect itself says that something does not exist.

    Its client raises `ObjectNotFound` for any 404 (3.8.8): the page of an ingress whose server is
    being rolled out says nothing about a run, and a live job must not be stopped for it.
    """
    answer = getattr(exc.http_exc, "response", None)
    return answer is None or _is_prefects(answer)


def _is_prefects(answer: httpx.Response) -> bool:
    try:
        return is_own_not_found(answer.content)
    except httpx.ResponseNotRead:
        return False


def is_passing_error(exc: Exception) -> bool:
    """Return whether the Prefect API may answer otherwise when it is asked again."""
    if isinstance(exc, ObjectNotFound):
        return not is_gone(exc)
    if isinstance(exc, httpx.HTTPStatusError):
        found_nothing = exc.response.status_code == int(httpx.codes.NOT_FOUND)
        foreign = found_nothing and not _is_prefects(exc.response)
        return foreign or is_passing(exc.response.status_code)
    return isinstance(exc, httpx.TransportError) and why_unsendable(exc) is None


def why_unsendable(exc: BaseException) -> str | None:
    """Return which setting of Prefect keeps any request from being sent, in a clause, or None.

    httpx calls that a `TransportError` like any other, and Prefect's client repeats it (3.8.8).
    """
    if isinstance(exc, httpx.UnsupportedProtocol):
        return "PREFECT_API_URL does not begin with http:// or https://"
    # Not each LocalProtocolError: one of a broken HTTP/2 connection passes.
    is_illegal = isinstance(exc, httpx.LocalProtocolError) and "Illegal header" in str(exc)
    if is_illegal or (isinstance(exc, UnicodeEncodeError) and exc.encoding == "ascii"):
        return (
            "PREFECT_API_KEY or PREFECT_CLIENT_CUSTOM_HEADERS has a character that HTTP does not "
            "allow in a header, such as a line end"
        )
    return None


def seconds_asked_for(exc: Exception) -> float:
    """Return for how long an answer asks us to wait (`Retry-After`), within reason, or 0."""
    answer = getattr(exc, "response", None)
    asked = answer.headers.get("Retry-After", "") if isinstance(answer, httpx.Response) else ""
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT_SECONDS)


async def ask_patiently(
    ask: Callable[[], Awaitable[T]],
    patience: Patience,
    *,
    on_wait: Callable[[Exception, float], object],
) -> T:
    """Return what a request returns, sent again for as long as Prefect is busy or away.

    Args:
        ask: Sends the request.
        patience: Ends the waiting.
        on_wait: Called with the error and the seconds before each wait.

    Raises:
        Exception: What does not pass, or the last error when the patience has ended; never
            `ObjectNotFound` for what Prefect itself has not called gone.
    """
    while True:
        try:
            return await ask()
        except (httpx.TransportError, httpx.HTTPStatusError, ObjectNotFound) as exc:
            trouble: Exception = exc
            if isinstance(exc, ObjectNotFound):
                if is_gone(exc):
                    raise
                trouble = exc.http_exc
            delay = None
            if is_passing_error(trouble):
                at_least = seconds_asked_for(trouble)
                delay = patience.wait(anyio.current_time(), at_least=at_least)
            if delay is None:
                raise trouble from None
            on_wait(trouble, delay)
        await anyio.sleep(delay)


async def wait_for_answer(
    ask: Callable[[], Awaitable[T]],
    *,
    first_wait: float = 1.0,
    run_log: "Logger | LoggerAdapter[Logger] | None" = None,
) -> T:
    """Return what a request for a run that a worker has returns, for which it waits up to an hour.

    Args:
        ask: Sends the request.
        first_wait: Seconds until it is sent again for the first time.
        run_log: Logs to the run, which learns of the first failure.
    """
    told = run_log is None

    def on_wait(exc: Exception, delay: float) -> None:
        nonlocal told
        why = masked(str(exc))  # httpx can quote a header that it refuses, and so the key
        _log.warning("The Prefect API does not answer (%s); trying again in %.0f s.", why, delay)
        if run_log is not None and not told:
            told = True
            run_log.warning(
                "This run waits for the Prefect API, which does not answer (%s). The worker tries "
                "again for up to an hour.",
                why,
            )

    patience = Patience(_RUN_SECONDS, now=anyio.current_time(), first=first_wait)
    return await ask_patiently(ask, patience, on_wait=on_wait)


async def outlast(
    ask: Callable[[], Awaitable[T]], log: "Logger | LoggerAdapter[Logger]", *, once: bool
) -> T:
    """Return what a round of a worker's loop returns, begun again where Prefect is busy or away.

    The loops themselves end the process for a single 429, and for the 404 of a proxy (3.8.8).

    Args:
        ask: The round.
        log: Told of each wait.
        once: Whether the worker does a single round, and is waited for.

    Raises:
        InvalidConfiguration: With a setting of this process no request can be sent.
    """
    patience = Patience(_ONCE_SECONDS if once else _LOOP_SECONDS, now=anyio.current_time())

    def on_wait(exc: Exception, delay: float) -> None:
        why = masked(str(exc))
        log.warning("The Prefect API is busy or away (%s); asking again in %.0f s.", why, delay)

    try:
        return await ask_patiently(ask, patience, on_wait=on_wait)
    except httpx.TransportError as exc:
        if (setting := why_unsendable(exc)) is not None:
            raise InvalidConfiguration(
                f"The Prefect API cannot be asked: {setting}. Correct it on this machine."
            ) from None
        raise
