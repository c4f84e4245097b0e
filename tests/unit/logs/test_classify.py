"""Lines to logs: levels, what is left out, and what Prefect has already."""

import json
import logging
import re

import pytest

from prefect_ray_worker.logs.classify import Shaped, Shaper
from prefect_ray_worker.logs.lines import LineSplitter
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import diagnosed
from prefect_ray_worker.shared.log_marks import mark, seal_of
from prefect_ray_worker.shared.verdict_line import format_verdict

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR
NOW_MS = 1_767_225_600_000
ATTEMPT = "0123456789ab"
JOB = f"job-{ATTEMPT}"
SEAL = seal_of(ATTEMPT)


def shape(*lines: str, entrypoint: str = "", longest: int = 25_000) -> list[tuple[int, str]]:
    shaper = Shaper(JOB, entrypoint=entrypoint, longest=longest)
    shaped: list[Shaped] = [s for line in lines for s in shaper.shape(line, now_ms=NOW_MS)]
    return [(s.level, s.message) for s in shaped]


def sent(text: str, level: int = INFO) -> list[str]:
    return mark(text, seal=SEAL, is_sent=True, level=level, when=NOW_MS / 1000).split("\n")


def unsent(text: str, level: int = INFO) -> list[str]:
    return mark(text, seal=SEAL, is_sent=False, level=level, when=NOW_MS / 1000).split("\n")


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("hello", INFO),
        ("WARNING:root:careful", WARNING),
        ("ERROR: no", ERROR),
        ("[ERROR] no", ERROR),
        ("error: linker failed", ERROR),
        ("Errors: 0", INFO),
        ("information is free", INFO),
        ("2026-01-01 12:00:00,123 - lib - WARNING - careful", WARNING),
        ("2026-01-01 12:00:00.123 | ERROR    | lib:f:12 - no", ERROR),
        ("[2026-01-01 12:00:00] ERROR in app: no", ERROR),
        ("2026-01-01T12:00:00Z there were no errors", INFO),
        ("/a/b.py:12: UserWarning: careful", WARNING),
        ("W0101 12:00:00.123456 1 x.cc:1] careful", WARNING),
        ("(add pid=12) ERROR:lib:no", ERROR),
        ("(Actor pid=12, ip=10.0.0.1) hello", INFO),
    ],
)
def test_level_is_fitting(line: str, level: int) -> None:
    assert shape(line) == [(level, line)]


@pytest.mark.parametrize(
    ("line", "level", "message"),
    [
        ("2026-01-01 12:00:00,123\tINFO worker.py:1 -- Joined", DEBUG, "worker.py:1 -- Joined"),
        ("2026-01-01 12:00:00,123\tERROR worker.py:1 -- no", ERROR, "worker.py:1 -- no"),
        ("[2026-01-01 12:00:00,123 W 12 34] core.cc:1: careful", WARNING, "core.cc:1: careful"),
        ("[2026-01-01 12:00:00,123 I 12 34] core.cc:1: fine", DEBUG, "core.cc:1: fine"),
    ],
)
def test_rays_own_lines_lose_their_second_time_and_level(
    line: str, level: int, message: str
) -> None:
    assert shape(line) == [(level, message)]


def test_terminal_sequences_and_control_characters_go() -> None:
    assert shape(
        "\x1b[36m(f pid=1)\x1b[0m \x1b[1mbold\x1b[0m\x1b]0;title\x07\x1b[2K\x08 text\x00"
    ) == [(INFO, "(f pid=1) bold text")]
    assert shape("tab\tstays") == [(INFO, "tab\tstays")]


def test_blank_lines_and_ray_bars_are_dropped() -> None:
    assert (
        shape("", "   ", "\x1b[0m", '{"__magic_token__": "__ray_tqdm_magic_token__", "x": 1}') == []
    )


def test_entrypoint_is_not_quoted() -> None:
    entrypoint = "export A=1\nexec python -m flow"
    lines = f"Running entrypoint for job job-0123456789ab: {entrypoint}".split("\n")
    assert shape(*lines, "export A=1", entrypoint=entrypoint) == [(INFO, "export A=1")]


def test_marked_lines_of_a_sent_record_are_left_out() -> None:
    record = "12:00:00.000 | ERROR   | Flow run 'a' - no\nTraceback (most recent call last):\n"
    assert shape("before", *sent(f"{record}  File\nE: x\nof two lines"), "after") == [
        (INFO, "before"),
        (INFO, "after"),
    ]


def test_sent_record_of_a_ray_worker_is_left_out() -> None:
    (line,) = sent("12:00:00.000 | INFO    | Task run 'a' - yes")
    assert (
        shape(f"\x1b[36m(f pid=1)\x1b[0m {line}", f"(f pid=1) {line}\x1b[32m [repeated 2x]") == []
    )


def test_record_that_was_not_sent_keeps_its_level_and_loses_its_frame() -> None:
    text = "12:00:00.000 | WARNING | mylib - careful\nTraceback (most recent call last):\nE: x"
    assert shape(*unsent(text, WARNING)) == [
        (WARNING, "mylib - careful"),
        (WARNING, "Traceback (most recent call last):"),
        (WARNING, "E: x"),
    ]


def test_flow_run_record_that_was_not_sent_is_forwarded() -> None:
    (line,) = unsent("12:00:00.000 | INFO    | Flow run 'a' - only on the console")
    assert shape(line) == [(INFO, "only on the console")]


def test_what_was_printed_before_a_record_on_its_line_is_forwarded() -> None:
    (line,) = sent("12:00:00.000 | INFO    | Flow run 'a' - yes")
    assert shape("loading ... " + line) == [(INFO, "loading ... ")]


def test_without_marks_the_format_tells_what_was_sent() -> None:
    assert shape(
        "12:00:00.123 | INFO    | Flow run 'brave-ox' - Beginning",
        "12:00:00.123 | INFO    | Task run 'add-1' - Finished",
        "12:00:00.123 | WARNING | prefect.client - slow",
        "printed",
    ) == [(WARNING, "prefect.client - slow"), (INFO, "printed")]


def test_without_marks_the_traceback_of_a_sent_record_is_left_out() -> None:
    assert shape(
        "12:00:00.123 | ERROR   | Flow run 'a' - Encountered an exception",
        "Traceback (most recent call last):",
        '  File "a.py", line 1, in f',
        "    1/0",
        "ZeroDivisionError: division by zero",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        "Traceback (most recent call last):",
        '  File "a.py", line 2, in f',
        "ValueError: no",
        "  printed, indented",
        "Traceback (most recent call last):",
        "KeyError: 1",
        "printed",
    ) == [
        (INFO, "  printed, indented"),
        (ERROR, "Traceback (most recent call last):"),
        (ERROR, "KeyError: 1"),
        (INFO, "printed"),
    ]


def test_tracebacks_of_several_processes_do_not_mix() -> None:
    assert shape(
        "(f pid=1) 12:00:00.123 | ERROR   | Task run 'a' - no",
        "(f pid=2) Traceback (most recent call last):",
        "(f pid=1) Traceback (most recent call last):",
        "(f pid=2)   File",
        "(f pid=1)   File",
        "(f pid=1) E: 1",
        "(f pid=2) E: 2",
    ) == [
        (ERROR, "(f pid=2) Traceback (most recent call last):"),
        (ERROR, "(f pid=2)   File"),
        (ERROR, "(f pid=2) E: 2"),
    ]


def test_message_is_cut_to_what_the_api_takes() -> None:
    ((_, message),) = shape("x" * 500, longest=200)
    assert len(message) <= 200
    assert message.endswith(f"[{500 - message.index('…')} more characters]")
    ((_, message),) = shape("ü" * 500, longest=200)
    assert len(message.encode("ascii", "backslashreplace")) <= 200 + 50


@pytest.mark.parametrize("text", ["x", "ü", "😀", "\\", '"', "a😀ü\\"])
def test_long_line_is_there_up_to_prefects_limit(text: str) -> None:
    """Lines were cut at 256 KiB, whatever the limit was."""
    longest = 999_600
    line = text * (2_000_000 // len(text.encode()))
    splitter = LineSplitter(longest)
    (whole,) = splitter.feed(f"{line}\n".encode())
    ((_, message),) = shape(whole, longest=longest)
    size = len(json.dumps(message))
    assert longest - 150 < size <= longest
    kept = message.partition("…")[0]
    assert line.startswith(kept)
    assert re.search(r"… \[\d+ more (bytes|characters)\]$", message)


def test_time_of_the_last_marked_line_is_known() -> None:
    shaper = Shaper(JOB, longest=1000)
    list(shaper.shape(sent("a")[0], now_ms=NOW_MS + 5000))
    assert shaper.marked_ms == NOW_MS


def test_what_the_driver_tells_the_worker_is_no_log() -> None:
    verdict = diagnosed(Category.OUT_OF_MEMORY)
    assert shape(format_verdict(verdict, ATTEMPT), "a line") == [(INFO, "a line")]


def test_marks_without_the_seal_hide_nothing_once_the_driver_has_begun() -> None:
    def copied(seal: str) -> str:
        return mark("copied", seal=seal, is_sent=True, level=INFO, when=NOW_MS / 1000)

    assert shape(copied("")) == [], "a driver of an older release"
    begun = shape(*sent("Driver of flow run x"), copied(""), copied(seal_of("another")))
    assert begun == [(INFO, "copied"), (INFO, "copied")]


def test_printed_text_that_looks_like_prefects_own_hides_nothing() -> None:
    """A driver of ours marks what it logs. A print in Prefect's format hid itself and more."""
    printed = [
        "12:00:00.123 | INFO    | Flow run 'brave-ox' - printed by hand",
        "Traceback (most recent call last):",
        '  File "a.py", line 1, in f',
        "ValueError: of the flow itself",
    ]
    (first,) = sent("Driver of flow run …")
    assert shape(first, *printed) == [
        (INFO, printed[0]),
        (ERROR, printed[1]),
        (ERROR, printed[2]),
        (ERROR, printed[3]),
    ]


def test_what_ray_forwards_from_processes_without_marks_is_judged_by_its_format() -> None:
    (first,) = sent("Driver of flow run …")
    assert shape(first, "(f pid=1) 12:00:00.123 | INFO    | Task run 'add-1' - Finished") == []


def test_a_process_of_ray_that_marks_its_lines_prints_what_it_likes() -> None:
    """A task's print that looked like one of Prefect's lines hid itself."""
    (seal,) = sent("This process marks its lines.", DEBUG)
    printed = "12:00:00.123 | INFO    | Task run 'a-b' - printed"
    there = "(f pid=1, ip=10.0.0.7) "
    assert shape(
        f"{there}{seal}",
        f"{there}{printed}",
        f"(g pid=1, ip=10.0.0.7) {printed}",
        f"(f pid=1, ip=10.0.0.8) {printed}",
        f"(f pid=2) {printed}",
    ) == [(INFO, f"{there}{printed}"), (INFO, f"(g pid=1, ip=10.0.0.7) {printed}")]
