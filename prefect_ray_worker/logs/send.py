"""`Sender`: sends logs to Prefect in batches, each log exactly once."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

import anyio

from prefect_ray_worker.errors import LogsGivenUp, LogsRefused, LogsUnclear
from prefect_ray_worker.prefect_api.logs import LogSink, SentLog
from prefect_ray_worker.shared.backoff import Backoff

T = TypeVar("T")

# Longer than any restart or upgrade of a Prefect server.
_PATIENCE_SECONDS = 3600.0
_DOUBT_SECONDS = 3.0

_log = logging.getLogger("prefect.workers.ray.logs")


class Sender:
    """Sends the logs of one run.

    A batch whose request failed may have arrived. So before it is sent again, Prefect is asked
    which of its logs it has; names and timestamps tell them apart.

    Args:
        sink: Where the logs go.
        patience: Seconds to wait for an API that does not answer.
    """

    def __init__(self, sink: LogSink, *, patience: float = _PATIENCE_SECONDS) -> None:
        self._sink = sink
        self._patience = patience

    async def send(self, logs: Sequence[SentLog]) -> None:
        """Return when Prefect has all the logs.

        Args:
            logs: In the order of their timestamps, no two alike.

        Raises:
            LogsGivenUp: Prefect did not accept them within the patience.
        """
        missing = list(logs)
        backoff = Backoff()
        deadline = anyio.current_time() + self._patience
        while missing:
            try:
                await self._sink.post(missing)
            except LogsRefused:
                await self._send_in_parts(missing)
                return
            except LogsUnclear as exc:
                await self._wait(backoff, deadline, exc)
                missing = await self._missing_of(missing, backoff, deadline)
                if missing:
                    # A server that hung may be about to store what it was sent: ask once more.
                    await anyio.sleep(_DOUBT_SECONDS)
                    missing = await self._missing_of(missing, backoff, deadline)
            else:
                return

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Return Prefect's answer to a question that changes nothing; repeat it until it answers.

        Raises:
            LogsGivenUp: Prefect did not answer within the patience.
        """
        return await self._ask(question, Backoff(), anyio.current_time() + self._patience)

    async def _ask(
        self, question: Callable[[], Awaitable[T]], backoff: Backoff, deadline: float
    ) -> T:
        while True:
            try:
                return await question()
            except LogsUnclear as exc:
                await self._wait(backoff, deadline, exc)

    async def _missing_of(
        self, logs: list[SentLog], backoff: Backoff, deadline: float
    ) -> list[SentLog]:
        there: set[tuple[str, datetime]] = set()
        offset = 0
        while True:
            page = await self._ask(
                lambda offset=offset: self._sink.find(
                    after=logs[0].timestamp,
                    before=logs[-1].timestamp,
                    newest_first=False,
                    offset=offset,
                ),
                backoff,
                deadline,
            )
            there.update((log.name, log.timestamp) for log in page.logs)
            if page.following is None:
                return [log for log in logs if (log.name, log.timestamp) not in there]
            offset = page.following

    async def _send_in_parts(self, logs: list[SentLog]) -> None:
        """Find the log that Prefect refuses, and send a note in its place."""
        if len(logs) > 1:
            half = len(logs) // 2
            await self.send(logs[:half])
            await self.send(logs[half:])
            return
        told = replace(
            logs[0], message=f"[A line of {len(logs[0].message)} characters was refused.]"
        )
        if told.message == logs[0].message:
            _log.warning("Prefect refuses any log of this run.")
            return
        await self.send([told])

    async def _wait(self, backoff: Backoff, deadline: float, reason: LogsUnclear) -> None:
        delay = max(backoff.next(), reason.wait)
        if anyio.current_time() + delay > deadline:
            raise LogsGivenUp(str(reason)) from reason
        _log.debug("The Prefect API does not take logs (%s); trying again.", reason)
        await anyio.sleep(delay)
