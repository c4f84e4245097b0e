"""`LogTail`: prints the logs of a flow run as they arrive, in the format of Prefect's console."""

import logging
import sys
import time
from datetime import datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    LogFilter,
    LogFilterFlowRunId,
    LogFilterTimestamp,
)
from prefect.client.schemas.objects import Log
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging.handlers import APILogHandler

from prefect_ray_worker.bundles.carriers import patiently
from prefect_ray_worker.prefect_api.log_window import LogWindow

_LOGGER = "prefect.flow_runs"
_API_AWAY_SECONDS = 600.0
_PAGE_LINES, _REJECTED = 200, 422


class LogTail:
    """Prints each line of a run's log once.

    Attributes:
        run_name: The run's name, once it is known.

    Args:
        flow_run_id: The run.
    """

    def __init__(self, flow_run_id: UUID) -> None:
        self._run_id = flow_run_id
        self.run_name = str(flow_run_id)
        self._window = LogWindow()
        self._printed: dict[UUID, datetime] = {}
        self._page_lines: int | None = _PAGE_LINES

    def print_new(
        self, client: SyncPrefectClient, *, is_last: bool = False, deadline: float | None = None
    ) -> None:
        """Print the lines that have arrived since.

        Args:
            client: An open client.
            is_last: Whether no more lines will arrive: then older ones are looked for as well.
            deadline: A moment of the monotonic clock after which no more pages are read.
        """
        # The output of a flow that prints much comes later than what it logs.
        since, is_wide = self._window.next_look(is_last=is_last)
        if is_wide and since is not None:  # no later look goes further back
            self._printed = {key: when for key, when in self._printed.items() if when >= since}
        offset = 0
        while True:
            page = self._page(client, since, offset, deadline)
            offset += len(page)
            for log in page:
                if log.id in self._printed:
                    continue
                self._printed[log.id] = log.timestamp
                self._window.saw(log.timestamp)
                _show(log, self.run_name)
            if len(page) < (self._page_lines or 1):
                return
            if deadline is not None and time.monotonic() >= deadline:
                return

    def _page(
        self,
        client: SyncPrefectClient,
        since: datetime | None,
        offset: int,
        deadline: float | None,
    ) -> list[Log]:
        wanted = LogFilter(
            flow_run_id=LogFilterFlowRunId(any_=[self._run_id]),
            timestamp=LogFilterTimestamp.model_validate({"after_": since}) if since else None,
        )
        try:
            return patiently(
                lambda: client.read_logs(
                    wanted, limit=self._page_lines, offset=offset, sort=LogSort.TIMESTAMP_ASC
                ),
                _API_AWAY_SECONDS,
                deadline=deadline,
            )
        except PrefectHTTPStatusError as exc:
            if self._page_lines is None or exc.response.status_code != _REJECTED:
                raise
        # The server rejects a limit above its own. Without one, only an empty page is certain to be
        # the last.
        self._page_lines = None
        return self._page(client, since, offset, deadline)


def _show(log: Log, run_name: str) -> None:
    """Print a line through the console handlers of Prefect's logging, as the user has set it up."""
    record = logging.makeLogRecord(
        {
            "name": _LOGGER,
            "levelno": log.level,
            "levelname": logging.getLevelName(log.level),
            "msg": log.message,
            "created": log.timestamp.timestamp(),
            "msecs": log.timestamp.microsecond / 1000,
            "flow_run_name": run_name,
        }
    )
    if not logging.getLogger(_LOGGER).isEnabledFor(log.level):
        return
    handlers = _console_handlers()
    if not handlers:
        sys.stderr.write(f"{log.timestamp:%H:%M:%S} | {log.message}\n")
    for handler in handlers:
        if record.levelno >= handler.level:
            handler.handle(record)


def _console_handlers() -> list[logging.Handler]:
    """Return the handlers of a flow run's logger, without the one that sends to the API."""
    found: list[logging.Handler] = []
    logger: logging.Logger | None = logging.getLogger(_LOGGER)
    while logger is not None:
        found += [h for h in logger.handlers if not isinstance(h, APILogHandler)]
        logger = logger.parent if logger.propagate else None
    return found
