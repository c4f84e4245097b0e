"""`Sender`: sends logs to Prefect in batches, each log exactly once."""

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from prefect_ray_worker.errors import LogsGivenUp, LogsRefused, LogsUnclear
from prefect_ray_worker.prefect_api.logs import LogSink, SentLog
from prefect_ray_worker.shared.backoff import Backoff

T = TypeVar("T")

# Longer than any restart or upgrade of a Prefect server.
_PATIENCE_SECONDS = 3600.0
_DOUBT_SECONDS = 3.0
# For the answer to a request that is under way when its sender is cancelled.
_LAST_ANSWER_SECONDS = 5.0
_REFUSED = re.compile(r"\[A line of \d+ characters was refused\.\]")

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
                await _answered(lambda logs=tuple(missing): self._sink.post(logs))
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
        """Find the log that Prefect refuses, and send a note in its place.

        The logs of one line stay together: its number says that all of them are there.
        """
        half = _middle(logs)
        if half:
            await self.send(logs[:half])
            await self.send(logs[half:])
            return
        suspects = [log for log in logs if log.message != _note_for(log)]
        if not suspects:
            _log.warning("Prefect refuses any log of this run.")
            return
        longest = max(suspects, key=lambda log: len(log.message))
        noted = replace(longest, message=_note_for(longest))
        await self.send([noted if log is longest else log for log in logs])

    async def _wait(self, backoff: Backoff, deadline: float, reason: LogsUnclear) -> None:
        delay = max(backoff.next(), reason.wait)
        if anyio.current_time() + delay > deadline:
            raise LogsGivenUp(str(reason)) from reason
        _log.debug("The Prefect API does not take logs (%s); trying again.", reason)
        await anyio.sleep(delay)


def _middle(logs: Sequence[SentLog]) -> int:
    """Return where to part logs, near their middle and between two lines; 0 for one line."""
    between = [i for i in range(1, len(logs)) if logs[i - 1].name != logs[i].name]
    return min(between, key=lambda i: abs(i - len(logs) // 2), default=0)


def _note_for(log: SentLog) -> str:
    if _REFUSED.fullmatch(log.message):
        return log.message
    return f"[A line of {len(log.message)} characters was refused.]"


async def _answered(post: Callable[[], Awaitable[None]]) -> None:
    """Send a request; where this task is cancelled meanwhile, give the answer some seconds.

    Given up at once, it may arrive after the worker that goes on here has asked what is there.
    """
    request = anyio.CancelScope(shield=True)
    raised: list[Exception] = []

    async def limit_once_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            request.deadline = anyio.current_time() + _LAST_ANSWER_SECONDS

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(limit_once_cancelled, name="ray-last-answer")
        with request:
            try:
                await post()
            except Exception as exc:  # noqa: BLE001 (raised below: a task group would wrap it)
                raised.append(exc)
        tasks.cancel_scope.cancel()
    await checkpoint_if_cancelled()  # the task group has taken the cancellation for its own
    if raised:
        raise raised[0]
