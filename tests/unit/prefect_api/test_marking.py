"""Which lines of a driver's console are marked, and how: in an interpreter of its own."""

import re
import textwrap
from collections.abc import Callable

import pytest

from prefect_ray_worker.shared.log_marks import Mark, find_mark, mark, seal_of
from prefect_ray_worker.shared.plain_text import plain
from tests.forks import Forks

NOW_MS = 1_767_225_600_123
SEAL = seal_of("0123456789ab")
OTHER = seal_of("ba9876543210")
PREAMBLE = """
import logging, sys
from prefect.logging import get_run_logger, get_logger
from prefect.logging.handlers import set_api_log_sink
from prefect.logging.loggers import get_logger
from prefect_ray_worker.prefect_api import marking
import prefect.logging.configuration
prefect.logging.configuration.setup_logging()
from prefect_ray_worker.shared.log_marks import seal_of
marking.install(seal_of("0123456789ab"))
marking.install(seal_of("0123456789ab"))
sent = []
set_api_log_sink(lambda log: sent.append(log["message"]))
run = {"flow_run_id": "2a672563-cf8a-4e9b-a5d1-000000000001", "flow_run_name": "ox"}
flow_logger = logging.getLogger("prefect.flow_runs")
"""
LinesOf = Callable[[str], list[str]]


@pytest.fixture
def lines_of(forks: Forks) -> LinesOf:
    """A function that runs code in an interpreter of its own, and returns what it prints."""

    def run(body: str) -> list[str]:
        out, err = forks.run(PREAMBLE + textwrap.dedent(body))
        return [*out.splitlines(), *err.splitlines()]

    return run


def marks_of(lines: list[str]) -> list[tuple[bool, int] | None]:
    found = [find_mark(line, seal=SEAL, now_ms=NOW_MS) for line in lines]
    return [(f[1].is_sent, f[1].level) if f else None for f in found]


def test_sent_record_is_marked_on_every_line(lines_of: LinesOf) -> None:
    lines = lines_of("""
        try:
            1 / 0
        except ZeroDivisionError:
            flow_logger.exception("two\\nlines", extra=run)
        assert len(sent) == 1
    """)
    assert len(lines) >= 5
    assert set(marks_of(lines)) == {(True, 40)}
    assert "ZeroDivisionError" in lines[-1]


def test_record_that_was_not_sent_is_marked_as_such(lines_of: LinesOf) -> None:
    lines = lines_of("""
        logging.getLogger("mylib").warning("careful")
        flow_logger.info("View at", extra={**run, "send_to_api": False})
        print("printed")
        assert sent == []
    """)
    assert [line for line in lines if "\x1b" not in line] == ["printed"]
    assert marks_of([line for line in lines if "\x1b" in line]) == [(False, 30), (False, 10)]


def test_handler_that_a_flow_adds_is_marked_as_well(lines_of: LinesOf) -> None:
    lines = lines_of("""
        logging.basicConfig(force=True, format="%(message)s", stream=sys.stdout, level="INFO")
        flow_logger.info("by its own format", extra=run)
        assert len(sent) == 1
    """)
    assert marks_of(lines) == [(True, 20)]
    assert lines[0].endswith("mby its own format")


def test_what_goes_elsewhere_is_not_marked(lines_of: LinesOf) -> None:
    lines = lines_of("""
        import io
        text = io.StringIO()
        handler = logging.StreamHandler(text)
        handler.setFormatter(logging.Formatter("%(message)s"))
        other = logging.getLogger("other")
        other.addHandler(handler)
        other.propagate = False
        other.warning("to a buffer")
        print(repr(text.getvalue()))
    """)
    assert lines == ["'to a buffer\\n'"]


def test_mark_says_what_it_was_given() -> None:
    text = mark("one\ntwo", seal=SEAL, is_sent=True, level=25, when=NOW_MS / 1000)
    for line, own in zip(text.split("\n"), ("one", "two"), strict=True):
        assert find_mark("before " + line, seal=SEAL, now_ms=NOW_MS + 60_000) == (
            "before ",
            Mark(is_sent=True, level=25, when_ms=NOW_MS),
            own,
        )


def test_mark_is_invisible_in_rays_dashboard() -> None:
    # `ANSI_ESC_PATTERN` of state_head.py, Ray 2.60.
    ansi = re.compile(b"\x1b\\x5b[(\x30-\x39)\x3b]+\x6d")
    text = mark("text", seal=SEAL, is_sent=False, level=100, when=NOW_MS / 1000)
    assert ansi.sub(b"", text.encode()) == b"text"


def test_a_mark_of_an_older_release_has_a_shorter_time() -> None:
    line = f"{SEAL}\x1b[9120;9{NOW_MS // 10**6 % 1000:03};9{NOW_MS // 1000 % 1000:03};9007mtext"
    when = NOW_MS // 1000 * 1000 + 7
    assert find_mark(line, seal=SEAL, now_ms=NOW_MS) == ("", Mark(True, 20, when), "text")


def test_a_mark_with_its_time_in_one_sequence_is_found() -> None:
    """As drivers between two releases wrote it."""
    ms = f"{NOW_MS % 10**12:012}"
    time = "".join(f";9{ms[i : i + 3]}" for i in range(0, 12, 3))
    found = find_mark(f"{SEAL}\x1b[9120{time}mtext", seal=SEAL, now_ms=NOW_MS)
    assert found == ("", Mark(True, 20, NOW_MS), "text")


def test_worker_of_an_older_release_reads_a_mark() -> None:
    """It found none, so it forwarded what the driver had sent once more."""
    pattern = re.compile(r"\x1b\[9([01])(\d\d);9(\d{3});9(\d{3});9(\d{3})m")  # in its words
    line = mark("text", seal=SEAL, is_sent=True, level=20, when=NOW_MS / 1000)
    found = pattern.match(line, len(SEAL))
    assert found is not None
    assert "".join(found.groups()) == f"120{NOW_MS % 10**9:09}"
    assert plain(line[found.end() :]) == "text"


def test_time_of_a_mark_is_right_around_the_turn_of_its_cycle() -> None:
    for when in (10**12 - 1, 10**12, 10**12 + 1):
        line = mark("x", seal=SEAL, is_sent=True, level=20, when=when / 1000)
        for now in (when - 5000, when + 5000):
            found = find_mark(line, seal=SEAL, now_ms=now)
            assert found is not None
            assert found[1].when_ms == when


def test_marks_of_another_job_or_of_no_job_are_plain_text() -> None:
    for seal in (OTHER, ""):
        line = mark("copied from elsewhere", seal=seal, is_sent=True, level=20, when=0)
        assert find_mark(line, seal=SEAL, now_ms=NOW_MS) is None


def test_marks_of_a_driver_that_is_older_than_seals_are_found() -> None:
    line = mark("text", seal="", is_sent=True, level=20, when=NOW_MS / 1000)
    assert find_mark(line, seal="", now_ms=NOW_MS) == ("", Mark(True, 20, NOW_MS), "text")


def test_a_process_of_ray_announces_that_it_marks_its_lines(forks: Forks) -> None:
    """On both streams, which Ray forwards apart, and in words that Ray does not call repeated."""
    script = """
    from prefect_ray_worker.prefect_api import marking
    from prefect_ray_worker.shared.log_marks import seal_of
    for seal in ("", seal_of("0123456789ab"), seal_of("0123456789ab")):
        marking.install_in_ray_process(seal)
    assert marking.present_seal() == seal
    """
    (out,), (err,) = map(str.splitlines, forks.run(textwrap.dedent(script)))
    assert marks_of([out, err]) == [(True, 10), (True, 10)]
    words = [line.rpartition("(")[2] for line in (out, err)]
    assert words[0] != words[1]
    assert not any(character.isdigit() for character in "".join(words))


def test_frames_of_this_package_do_not_show_where_ray_has_unpacked_it(
    lines_of: LinesOf,
) -> None:
    """Each such frame had 150 characters of folders, 64 of them a hash."""
    folder = f"/tmp/ray/session_1/runtime_resources/py_modules_files/_ray_pkg_{'0a' * 32}"
    lines = lines_of(f"""
        code = compile("1 / 0", "{folder}/prefect_ray_worker/task_runner/futures.py", "exec")
        try:
            exec(code)
        except ZeroDivisionError:
            flow_logger.exception("failed", extra=run)
        print(*sent)
    """)
    assert not [line for line in lines if "_ray_pkg_" in line]
    frame = 'File "prefect_ray_worker/task_runner/futures.py", line 1'
    assert len([line for line in lines if frame in line]) == 2, "in the console and in Prefect"
