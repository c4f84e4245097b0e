"""`LogBridge`: forwards everything that one job prints to the logs of its flow run."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime

import anyio
from anyio.lowlevel import checkpoint

from prefect_ray_worker.errors import JobsApiError, LogNotFound, LogsGivenUp
from prefect_ray_worker.logs.classify import Shaper
from prefect_ray_worker.logs.lines import Line, LineSplitter, joined
from prefect_ray_worker.logs.position import Stamps, find_position, milliseconds, name_of
from prefect_ray_worker.logs.read import ClusterLogs, LogPlace, Progress
from prefect_ray_worker.logs.send import Sender
from prefect_ray_worker.logs.unsent import UnsentRecords
from prefect_ray_worker.prefect_api.logs import LogSink, SentLog
from prefect_ray_worker.ray_api.models import JobDetails
from prefect_ray_worker.shared.backoff import Backoff

# Ray's supervisor has written the last line when the status is terminal; a stray child may not.
_SETTLE_SECONDS = 1.0
# How long a log may be unavailable after the end of its job: while the node says that it does not
# have it, and while the cluster does not answer.
_MISSING_SECONDS = 10.0
_SILENT_SECONDS = 120.0
# The fastest batch size of a Prefect server, per log (3.8.8).
_BATCH_LOGS = 200
# After this time without reaching the end of a log, it grows faster than Prefect accepts logs.
_BEHIND_SECONDS = 5.0
_JOINED_LINES = 50
_BATCH_CHARACTERS = 512 * 1024
# Work on this much, some milliseconds, before other tasks of the event loop get their turn.
_SLICE = 16 * 1024
_LONGEST_PAUSE_SECONDS = 300.0
# A server may be about to store what a process sent before it died.
_DOUBT_SECONDS = 3.0
# A record that claims to be from tomorrow says more about the node's clock than about the record.
_WRONG_CLOCK_MS = 24 * 3600 * 1000

_log = logging.getLogger("prefect.workers.ray.logs")


class LogBridge:
    """Forwards the log of one job to its flow run, each line exactly once and in order.

    A new bridge for the same job, in another process too, goes on where the one before it has
    stopped: it asks Prefect for the last line that is there, reads the job's log again from the
    start and passes over all lines up to that one. No two bridges for a job must run at a time.

    Args:
        submission_id: The job.
        attempt: Which attempt at its run the job is, counted from 1.
        reads: The log side of its cluster.
        sink: The logs of its run.
        longest: The most characters of a log, as JSON.
        is_new: Whether no bridge can have run for the job, so that Prefect need not be asked.
        on_end: Awaited once all that the flow has printed is in Prefect, if its driver says when
            that is. The job has not ended by then.

    Attributes:
        bytes_read: How much of the job's log has been read.
        lines_forwarded: How many lines this bridge has brought to Prefect.
        is_complete: Whether the log is in Prefect to its end, or its loss is.
        has_given_up: Whether Prefect was away for too long; another bridge can go on.
        lag_seconds: Seconds since the end of the log was last reached, or 0 before the first look.
    """

    def __init__(
        self,
        submission_id: str,
        *,
        attempt: int,
        reads: ClusterLogs,
        sink: LogSink,
        longest: int,
        is_new: bool = False,
        on_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._job = submission_id
        self._attempt = attempt
        self._reads = reads
        self._sink = sink
        self._longest = longest
        self._is_new = is_new
        self._on_end = on_end
        self._sender = Sender(sink)
        self._details: JobDetails | None = None
        self._news = anyio.Event()
        self._ended_at: float | None = None
        self._silent_since: float | None = None
        self._progress = Progress()
        self._splitter = LineSplitter(longest)
        self._batch: list[SentLog] = []
        self._room = _BATCH_CHARACTERS
        self._batched_lines = 0
        self._last_message = ""
        self._line = self._lines_there = 0
        self._logged_lines_there = 0
        self._behind_since: float | None = None
        self._not_before = 0
        self._stamps = Stamps()
        self._shaper = Shaper(submission_id, longest=longest)
        self._unsent = UnsentRecords(attempt, longest=longest)
        self._seen_to_end_at: datetime | None = None
        # Until its first lines are read: when the job was submitted.
        self._begins_after: int | None = None
        self.lines_forwarded = 0
        self.is_complete = self.has_given_up = False

    @property
    def bytes_read(self) -> int:
        """How much of the job's log has been read, in bytes."""
        return self._progress.offset

    @property
    def lag_seconds(self) -> float:
        """Seconds since the log was last seen to its end and forwarded."""
        seen = self._seen_to_end_at
        return 0.0 if seen is None else (datetime.now(UTC) - seen).total_seconds()

    def observe(self, details: JobDetails) -> None:
        """Take what a look at the job showed: where its log is, and whether it has ended."""
        self._details = details
        if details.is_terminal:
            self.end()
        self._news.set()

    def end(self) -> None:
        """Stop at the present end of the log: the job has ended, or its cluster is lost."""
        if self._ended_at is None:
            self._ended_at = anyio.current_time()
        self._news.set()

    async def run(self) -> None:
        """Forward until the job has ended and all of its log is in Prefect, or the log is gone.

        Never raises for failures of Ray or Prefect: waits, and at last gives up and says so, in
        the run's log if that is possible.
        """
        try:
            with self._reads.following(), self._sink.undisturbed():
                await self._run()
        except LogsGivenUp as exc:
            self.has_given_up = True
            _log.error(
                "Prefect has not taken the log of the Ray Job %s for long: %s", self._job, exc
            )

    async def _run(self) -> None:
        place = await self._find_place()
        if place is None or self._details is None:
            # A job that has ended without a node has no log.
            self.is_complete = self._details is not None and self._details.is_terminal
            return
        since = datetime.fromtimestamp((self._details.start_time or 0) / 1000, UTC)
        position = None
        if not self._is_new:
            position = await find_position(
                self._sink, self._sender, self._job, self._attempt, since=since
            )
        self._shaper = Shaper(self._job, entrypoint=self._details.entrypoint, longest=self._longest)
        if position is None:
            self._begins_after = milliseconds(since)
            self._not_before = milliseconds(max(since, datetime.now(UTC)))
        else:
            newest = position.newest
            self._not_before, self._last_message = milliseconds(newest.timestamp), newest.message
            self._lines_there = position.line
            self._logged_lines_there = position.logged_lines
            self._stamps.resume(newest.timestamp)
        await self._follow(place)
        self.is_complete = True

    async def _find_place(self) -> LogPlace | None:
        """Wait until the job has begun; None if it has ended without ever doing so."""
        while (place := self._place()) is None:
            if self._ended_at is not None:
                return None
            await self._news.wait()
            self._news = anyio.Event()
        return place

    def _place(self) -> LogPlace | None:
        details = self._details
        if details is None or not details.driver_node_id:
            return None
        return LogPlace(self._job, details.driver_node_id, details.driver_agent_http_address)

    async def _follow(self, place: LogPlace) -> None:
        backoff = Backoff()
        idle = 0
        while True:
            ended_at = self._ended_at
            began = datetime.now(UTC)
            try:
                place = self._place() or place
                piece = await self._reads.read(place, self._progress)
            except JobsApiError as exc:
                if self._silent_since is None:
                    self._silent_since = anyio.current_time()
                if self._has_given_up(exc):
                    await self._tell_of_loss(exc)
                    return
                await anyio.sleep(backoff.next())
                continue
            backoff.reset()
            self._silent_since = None
            if self._behind_since is None:
                self._behind_since = anyio.current_time()
            await self._forward(piece.data, milliseconds(began))
            idle = 0 if piece.data else idle + 1
            if not piece.is_last:
                continue
            self._seen_to_end_at, self._behind_since = began, None
            self._not_before = max(self._not_before, milliseconds(began))
            now = anyio.current_time()
            if ended_at is not None and now - ended_at >= _SETTLE_SECONDS:
                await self._finish(milliseconds(began))
                return
            await self._pause(place, idle)

    async def _pause(self, place: LogPlace, idle: int) -> None:
        """Wait for the next look; a log that is quiet is looked at a little less often."""
        quiet = 1 + min(idle, 20) / 20
        pause = self._reads.pause(place) * quiet
        seconds = max(min(pause, _LONGEST_PAUSE_SECONDS), self._progress.rest)
        if self._ended_at is not None:
            await anyio.sleep(min(seconds, _SETTLE_SECONDS))
            return
        with anyio.move_on_after(seconds):
            while self._ended_at is None:
                await self._news.wait()
                self._news = anyio.Event()

    async def _forward(self, data: bytes, read_ms: int) -> None:
        if data and self._begins_after is not None:
            first = self._shaper.first_marked_ms(data.decode(errors="replace"), now_ms=read_ms)
            if first is not None and first < self._not_before:
                # The flow began before this bridge did: what it prints stands with its records.
                self._not_before = max(first, self._begins_after + 1)
            self._begins_after = None
        for start in range(0, len(data), _SLICE):
            part = data[start : start + _SLICE]
            await self._collect(self._shaped(self._splitter.feed(part), read_ms))
            self._progress.advance(part)
        await self._flush()
        if self._shaper.has_ended and self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            await on_end()

    def _shaped(self, lines: Iterable[str], read_ms: int) -> Iterator[Line]:
        """Yield what the lines become, without what Prefect has already."""
        for line in lines:
            self._line += 1
            self._shaper.marked_ms = None
            for shaped in self._shaper.shape(line, now_ms=read_ms):
                if self._logged_lines_there:
                    self._logged_lines_there -= 1
                elif self._line > self._lines_there:
                    yield Line(shaped.level, shaped.message, self._not_before, self._line)
            marked_ms = self._shaper.marked_ms
            if marked_ms is not None and marked_ms - read_ms < _WRONG_CLOCK_MS:
                # Places what is printed between two log records of the flow between them.
                self._not_before = max(self._not_before, marked_ms + 1)
                if self._shaper.has_ended:
                    self._unsent.clear()
                elif self._shaper.sent is not None:
                    self._unsent.note(self._shaper.sent, self._line)

    async def _collect(self, lines: Iterator[Line]) -> None:
        # Also if nothing is to be sent: reading a long log again must not block other tasks.
        await checkpoint()
        most = _JOINED_LINES if self._is_behind() else 1
        for group in joined(lines, most=most, longest=self._longest):
            name = name_of(self._attempt, group.number)
            # Keep the logs of one line in one batch: its number says that all of them are there.
            is_same_line = self._batch and self._batch[-1].name == name
            if (len(self._batch) >= _BATCH_LOGS or self._room <= 0) and not is_same_line:
                await self._flush()
            stamp = self._stamps.next(group.not_before_ms)
            self._batch.append(SentLog(name, stamp, group.level, group.message))
            self._room -= len(group.message)
            self._batched_lines += group.count

    async def _flush(self) -> None:
        batch, self._batch, self._room = self._batch, [], _BATCH_CHARACTERS
        if batch:
            await self._sender.send(batch)
            self.lines_forwarded += self._batched_lines
            self._batched_lines = 0

    def _is_behind(self) -> bool:
        since = self._behind_since
        return since is not None and anyio.current_time() - since > _BEHIND_SECONDS

    async def _finish(self, read_ms: int) -> None:
        await self._collect(self._shaped(self._splitter.finish(), read_ms))
        await self._flush()
        await self._send_unsent()

    async def _send_unsent(self) -> None:
        """Send what died with a process of the flow before Prefect's handler had sent it."""
        # Lines that follow are in Prefect already, and have later times: the position stays.
        missing = await self._unsent.missing(self._sink, self._sender)
        if missing:
            await anyio.sleep(_DOUBT_SECONDS)
            missing = await self._unsent.missing(self._sink, self._sender)
        for start in range(0, len(missing), _BATCH_LOGS):
            await self._sender.send(missing[start : start + _BATCH_LOGS])
        self.lines_forwarded += len(missing)

    def _has_given_up(self, exc: JobsApiError) -> bool:
        if self._ended_at is None or self._silent_since is None:
            return False
        patience = _MISSING_SECONDS if isinstance(exc, LogNotFound) else _SILENT_SECONDS
        # The time for which Prefect was away is not the cluster's.
        return anyio.current_time() - max(self._ended_at, self._silent_since) > patience

    async def _tell_of_loss(self, exc: JobsApiError) -> None:
        lost = f"The log of the Ray Job {self._job} cannot be read any more"
        if self._last_message.startswith(lost):
            return  # an earlier bridge has said so
        await self._finish(self._not_before)
        line = max(self._line, self._lines_there)
        message = f"{lost}: {line} lines of it had been read; anything after is lost. {exc}"
        await self._collect(iter([Line(logging.WARNING, message, self._not_before, line)]))
        await self._flush()
