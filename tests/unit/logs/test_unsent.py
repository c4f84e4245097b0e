"""Records that Prefect's handler could not send any more are sent by the bridge, and no others."""

import logging
from datetime import UTC, datetime, timedelta

from prefect_ray_worker.logs import unsent as unsent_module
from prefect_ray_worker.logs.classify import MarkedText
from prefect_ray_worker.logs.send import Sender
from prefect_ray_worker.logs.unsent import UnsentRecords
from prefect_ray_worker.prefect_api.logs import SentLog
from prefect_ray_worker.shared.ids import attempt_in
from prefect_ray_worker.shared.log_marks import Mark, end_of_output, mark, seal_of
from tests.unit.logs.kit import JOB, LONGEST, MemoryLogs, MemoryPrefect, bridge, details, run

SEAL = seal_of(attempt_in(JOB))
# After the bridge's first look, which no line that it reads then can be older than. A test begins
# long after its module has been imported.
START = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def record(
    message: str, seconds: float, level: int = logging.INFO, run: str = "Flow run 'a-b'"
) -> str:
    """Return a record as the console shows it that Prefect's handler has got."""
    text = f"12:00:00.123 | {logging.getLevelName(level):7} | {run} - {message}"
    when = at(seconds).timestamp()
    return mark(text, seal=SEAL, is_sent=True, level=level, when=when) + "\n"


def sent(message: str, seconds: float, level: int = logging.INFO) -> SentLog:
    """Return what the handler has brought to Prefect."""
    return SentLog("prefect.flow_runs", at(seconds), level, message)


def bridged(output: str, prefect: MemoryPrefect) -> list[str]:
    """Forward the whole output of a dead job, and return what Prefect has by time."""
    logs = MemoryLogs()
    logs.data = output.encode()

    async def forward() -> None:
        made = bridge(logs, prefect)
        made.observe(details("FAILED"))
        await made.run()

    run(forward())
    return [log.message for log in sorted(prefect.logs, key=lambda log: log.timestamp)]


def test_only_what_is_missing_is_sent_and_a_second_bridge_sends_nothing() -> None:
    output = (
        record("Driver starts", 0)
        + record("same", 1)
        + record("same", 1)
        + "printed\n"
        + record("two\nlines", 2, logging.ERROR)
        + "printed last\n"
    )
    prefect = MemoryPrefect()
    prefect.logs = [sent("Driver starts", 0.0004), sent("same", 1)]
    wanted = ["Driver starts", "same", "same", "printed", "two\nlines", "printed last"]
    assert bridged(output, prefect) == wanted
    assert bridged(output, prefect) == wanted
    assert [log.level for log in prefect.logs if log.message == "two\nlines"] == [logging.ERROR]


def test_a_driver_that_has_sent_all_is_believed() -> None:
    output = record("gone", 0) + end_of_output(SEAL, at(1).timestamp()) + "\n"
    assert bridged(output, MemoryPrefect()) == []


def test_what_the_console_shows_otherwise_is_not_doubled() -> None:
    """With PREFECT_LOGGING_MARKUP the console's text is another than Prefect's."""
    prefect = MemoryPrefect()
    prefect.logs = [sent("[red]text[/red]", 0), sent("a\ttab", 1)]
    assert bridged(record("text", 0) + record("a       tab", 1), prefect) == [
        "[red]text[/red]",
        "a\ttab",
    ]


def test_a_line_that_is_printed_just_after_is_not_taken_for_the_record() -> None:
    output = record("x", 0) + "x\n"
    assert bridged(output, MemoryPrefect()) == ["x", "x"]


def test_a_record_of_a_task_says_so() -> None:
    line = record("hello", 0, run="Task run 'say-0'")
    assert bridged(line, MemoryPrefect()) == ["Task run 'say-0' - hello"]


def test_an_unclear_answer_doubles_nothing() -> None:
    prefect = MemoryPrefect(["fine", "unclear", "unclear", "fine", "unclear"])
    assert bridged(record("a", 0) + record("b", 1), prefect) == ["a", "b"]


def test_memory_is_bounded() -> None:
    records = UnsentRecords(1, longest=LONGEST)
    for number in range(3000):
        text = f"12:00:00.123 | INFO    | Flow run 'a-b' - {'x' * 100} {number}"
        records.note(MarkedText("", text, Mark(True, logging.INFO, number)), number)
    prefect = MemoryPrefect()
    kept = run(records.missing(prefect, Sender(prefect)))
    assert kept[-1].message.endswith(" 2999")
    assert sum(len(log.message) for log in kept) <= unsent_module._KEPT_CHARACTERS
