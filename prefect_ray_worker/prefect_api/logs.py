"""The logs of a flow run in Prefect, as the log bridge writes and reads them."""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import anyio
import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
from prefect.client.schemas.sorting import LogSort
from prefect.context import SettingsContext, get_settings_context
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_LOGGING_TO_API_MAX_LOG_SIZE,
    Settings,
)

from prefect_ray_worker.errors import LogsRefused, LogsUnclear
from prefect_ray_worker.prefect_api.answers import seconds_asked_for
from prefect_ray_worker.prefect_api.pages import pages
from prefect_ray_worker.prefect_api.per_settings import PerSettings
from prefect_ray_worker.shared.masking import masked

LOGGER_NAME = "prefect.ray.job"
"""Begins the name of every log of what a job prints; its line follows (`logs/position.py`)."""


@dataclass(frozen=True)
class SentLog:
    """One log as it goes to Prefect.

    Attributes:
        name: Says which line of the job's output it is.
        timestamp: Its place among the logs of the run; no two logs of an attempt share one.
        level: As in `logging`.
        message: The line.
    """

    name: str
    timestamp: datetime
    level: int
    message: str


@dataclass(frozen=True)
class FoundLogs:
    """A page of logs that Prefect has.

    Attributes:
        logs: In the order asked for.
        following: Offset of the next page; None if this one is the last.
    """

    logs: list[SentLog]
    following: int | None


# What a log takes besides its message: the names and values of its other fields.
_ENVELOPE = 400
# Every other 4xx is about the logs themselves.
_PASSING = frozenset({401, 403, 404, 408, 425, 429})


def longest_message() -> int:
    """Return the most characters of JSON that the API takes for a message: 25,000 on Cloud."""
    return PREFECT_LOGGING_TO_API_MAX_LOG_SIZE.value() - _ENVELOPE


class LogSink(Protocol):
    """Where the logs of one run go."""

    def undisturbed(self) -> AbstractContextManager[object]:
        """Return a context in which the client does not repeat requests by itself."""
        ...

    async def post(self, logs: Sequence[SentLog]) -> None:
        """Add logs.

        Raises:
            LogsUnclear: They may have been added, or not.
            LogsRefused: They have not been added, and never will be as they are.
        """
        ...

    async def find(
        self, *, after: datetime, before: datetime | None, newest_first: bool, offset: int
    ) -> FoundLogs:
        """Return a page of the run's logs under our name between two times, both included.

        `before` is None for no upper limit.

        Raises:
            LogsUnclear: Ask again later.
        """
        ...

    async def find_all(self, *, after: datetime, before: datetime, offset: int) -> FoundLogs:
        """Return a page of the logs of the run and its subflows, under any name, oldest first.

        Raises:
            LogsUnclear: Ask again later.
        """
        ...


@PerSettings
def _settings_without_retries(settings: Settings) -> Settings:
    return settings.copy_with_update(updates={PREFECT_CLIENT_MAX_RETRIES: 0})


class PrefectLogs:
    """The logs of one flow run, through Prefect's client.

    Args:
        client: An open client.
        flow_run_id: The run.
        limiter: Shared by all runs of a worker: logs must never take all of the client's sockets.
    """

    def __init__(
        self, client: PrefectClient, flow_run_id: UUID, limiter: anyio.CapacityLimiter
    ) -> None:
        self._client = client
        self._run_id = flow_run_id
        self._limiter = limiter

    def undisturbed(self) -> AbstractContextManager[object]:
        """Return a context without the client's own retries.

        They would send a batch again after a lost answer, and double it (3.8.8, `client/base.py`).
        """
        profile = get_settings_context().profile
        return SettingsContext(profile=profile, settings=_settings_without_retries())

    async def post(self, logs: Sequence[SentLog]) -> None:
        """Add logs."""
        bodies = [
            {
                "name": log.name,
                "level": log.level,
                "message": log.message,
                "timestamp": log.timestamp.isoformat(),
                "flow_run_id": str(self._run_id),
            }
            for log in logs
        ]
        async with self._limiter:
            with _named_errors():
                await self._client.create_logs(bodies)

    async def find(
        self, *, after: datetime, before: datetime | None, newest_first: bool, offset: int
    ) -> FoundLogs:
        """Return a page of the run's logs under our name."""
        sort = LogSort.TIMESTAMP_DESC if newest_first else LogSort.TIMESTAMP_ASC
        async with self._limiter:
            with _named_errors():
                page = await self._page([self._run_id], after, before, offset, sort)
        own = [log for log in page.logs if log.name.startswith(LOGGER_NAME)]
        return FoundLogs(own, page.following)

    async def find_all(self, *, after: datetime, before: datetime, offset: int) -> FoundLogs:
        """Return a page of all logs of the run and its subflows."""
        async with self._limiter:
            with _named_errors():
                runs = [self._run_id, *await self._subflows(after)]
                return await self._page(runs, after, before, offset, LogSort.TIMESTAMP_ASC)

    async def _page(
        self,
        runs: list[UUID],
        after: datetime,
        before: datetime | None,
        offset: int,
        sort: LogSort,
    ) -> FoundLogs:
        span = LogFilter(
            flow_run_id=LogFilterFlowRunId(any_=runs),
            timestamp=LogFilterTimestamp.model_validate({"after_": after, "before_": before}),
        )
        found = await self._client.read_logs(span, offset=offset, sort=sort)
        return FoundLogs(
            [SentLog(log.name, _plain(log.timestamp), log.level, log.message) for log in found],
            # A page is as long as the server pleases (`PREFECT_SERVER_API_DEFAULT_LIMIT`).
            offset + len(found) if found else None,
        )

    async def _subflows(self, since: datetime) -> list[UUID]:
        """Return the subflow runs, and theirs, that had not ended at a time."""
        found: list[UUID] = []
        parents = [self._run_id]
        while parents:
            of_parents = {"parent_flow_run_id": {"any_": [str(run_id) for run_id in parents]}}
            parents = []
            for lasting in (
                {"end_time": {"after_": since.isoformat()}},
                {"end_time": {"is_null_": True}},
            ):
                body = {"flow_runs": {**of_parents, **lasting}}
                async for page in pages(self._filter_runs, body):
                    parents += [UUID(run["id"]) for run in page]
            found += parents
        return found

    async def _filter_runs(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        return (await self._client.request("POST", "/flow_runs/filter", json=body)).json()


def _plain(when: datetime) -> datetime:
    """Return a time of Prefect's, which are of a class that does not calculate with others."""
    utc = when.astimezone(UTC)
    return datetime.combine(utc.date(), utc.time(), UTC)


@contextmanager
def _named_errors() -> Generator[None, None, None]:
    try:
        yield
    except PrefectHTTPStatusError as exc:
        code = exc.response.status_code
        if httpx.codes.is_client_error(code) and code not in _PASSING:
            raise LogsRefused(f"Prefect refused logs (HTTP {code}).") from exc
        raise LogsUnclear(f"Prefect answered HTTP {code}.", wait=seconds_asked_for(exc)) from exc
    except httpx.HTTPError as exc:
        why = masked(f"{type(exc).__name__}: {exc}")
        raise LogsUnclear(f"No answer from Prefect ({why}).") from exc
