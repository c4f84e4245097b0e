"""`UnsentRecords`: log records that died with their process before Prefect's handler sent them.

Prefect's handler collects records for 2 s and sends them from a thread (`APILogHandler`, 3.8.8). A
process that dies of SIGKILL takes them along. Its console has them, marked as sent. So the records
of a log's last minute are kept here, and where a log ends without the driver's word that all is
sent, those that Prefect does not have are sent from here.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect_ray_worker.logs.classify import PREFECT_FORMAT, MarkedText, cut
from prefect_ray_worker.logs.position import Stamps, milliseconds, name_of
from prefect_ray_worker.logs.send import Sender
from prefect_ray_worker.prefect_api.logs import LOGGER_NAME, LogSink, SentLog
from prefect_ray_worker.shared.log_marks import HIGHEST_LEVEL
from prefect_ray_worker.shared.plain_text import plain

# Much longer than the handler's interval: an API that is slow to answer holds it up.
_KEPT_MS = 60_000
# All runs of a worker keep as much.
_KEPT_CHARACTERS = 128 * 1024
# What Prefect's handler ends a record with that is too long for the API (3.8.8).
_TRUNCATED = "... [truncated]"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class _Record:
    source: str
    level: int
    when_ms: int
    lines: list[str]
    number: int

    @property
    def characters(self) -> int:
        return sum(map(len, self.lines))

    @property
    def message(self) -> str:
        found = PREFECT_FORMAT.match(self.lines[0])
        assert found is not None
        # A log of the flow is a log of the run; one of a task has to say so.
        start = found.end() if found[3] == "Flow run" else found.start("what")
        return "\n".join([self.source + self.lines[0][start:], *self.lines[1:]])

    def fits(self, log: SentLog) -> bool:
        """Return whether a log of Prefect's of the same time can be this record."""
        return min(log.level, HIGHEST_LEVEL) == self.level

    def shows(self, log: SentLog) -> bool:
        """Return whether this record certainly is a log of Prefect's of the same time."""
        # A console expands tabs, and drops control characters.
        first = plain(log.message).partition("\n")[0].rpartition("\r")[2].removesuffix(_TRUNCATED)
        return self.fits(log) and "".join(first.split()) in "".join(self.lines[0].split())


class UnsentRecords:
    """The last records of one job that its processes have given to Prefect's handler.

    Only records in the console format of Prefect are kept: in any other, a record could not be
    compared with what Prefect has, and would be doubled.

    Args:
        attempt: Which attempt at its run the job is, counted from 1.
        longest: The most characters of a log, as JSON.
    """

    def __init__(self, attempt: int, *, longest: int) -> None:
        self._attempt = attempt
        self._longest = longest
        self._records: deque[_Record] = deque()
        self._characters = 0

    def note(self, marked: MarkedText, number: int) -> None:
        """Keep a line of a record that its process has given to Prefect's handler.

        Args:
            marked: The line.
            number: Which line of the job's output it is.
        """
        mark = marked.mark
        if PREFECT_FORMAT.match(marked.text):
            record = _Record(marked.source, mark.level, mark.when_ms, [], number)
            self._records.append(record)
        else:
            record = self._begun(marked)
            if record is None:
                return
        record.lines.append(marked.text)
        record.number = number
        self._characters += len(marked.text)
        while self._records and (
            self._characters > _KEPT_CHARACTERS
            or self._records[0].when_ms < mark.when_ms - _KEPT_MS
        ):
            self._characters -= self._records.popleft().characters

    def clear(self) -> None:
        """Forget all records: Prefect has them."""
        self._records.clear()
        self._characters = 0

    async def missing(self, sink: LogSink, sender: Sender) -> list[SentLog]:
        """Return the records that Prefect does not have, as logs in the order of their times.

        Args:
            sink: The run's logs.
            sender: Asks patiently.

        Raises:
            LogsGivenUp: The API does not answer.
        """
        if not self._records:
            return []
        records = sorted(self._records, key=lambda record: (record.when_ms, record.number))
        there = await _logs_between(sink, sender, records[0].when_ms, records[-1].when_ms)
        stamps = Stamps()
        return [
            SentLog(
                self._name_of(record),
                stamps.next(record.when_ms),
                record.level,
                cut(record.message, self._longest),
            )
            for record in self._not_among(there, records)
        ]

    def _not_among(self, there: list[SentLog], records: list[_Record]) -> list[_Record]:
        own = {log.name for log in there if log.name.startswith(LOGGER_NAME)}
        left = [record for record in records if self._name_of(record) not in own]
        by_time: defaultdict[int, list[SentLog]] = defaultdict(list)
        for log in there:
            if log.name not in own:
                by_time[milliseconds(log.timestamp)].append(log)
        # What the console shows otherwise (`PREFECT_LOGGING_MARKUP`) is taken last, by its time.
        for is_same in (_Record.shows, _Record.fits):
            left = [record for record in left if not _take(by_time, record, is_same)]
        return left

    def _begun(self, marked: MarkedText) -> _Record | None:
        """Return the record that a further line belongs to; None if it is not kept."""
        key = marked.source, marked.mark.level, marked.mark.when_ms
        return next(
            (r for r in reversed(self._records) if (r.source, r.level, r.when_ms) == key), None
        )

    def _name_of(self, record: _Record) -> str:
        return name_of(self._attempt, record.number)


def _take(
    there: dict[int, list[SentLog]], record: _Record, is_same: Callable[[_Record, SentLog], bool]
) -> bool:
    """Take the log that is a record, if there is one; another record may say the same then."""
    # A time is a float on one side, and whole microseconds on the other.
    for when_ms in (record.when_ms, record.when_ms - 1, record.when_ms + 1):
        logs = there.get(when_ms, [])
        found = next((log for log in logs if is_same(record, log)), None)
        if found is not None:
            logs.remove(found)
            return True
    return False


async def _logs_between(
    sink: LogSink, sender: Sender, first_ms: int, last_ms: int
) -> list[SentLog]:
    after = _EPOCH + timedelta(milliseconds=first_ms - 1)
    before = _EPOCH + timedelta(milliseconds=last_ms + 2)
    found: list[SentLog] = []
    offset: int | None = 0
    while offset is not None:
        page = await sender.ask(
            lambda offset=offset: sink.find_all(after=after, before=before, offset=offset)
        )
        found += page.logs
        offset = page.following
    return found
