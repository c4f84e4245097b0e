"""The command line: what is a bad call, and what help says."""

import inspect
import io
import re
import sys
from itertools import pairwise
from uuid import uuid4

import pytest
from rich.console import Console
from rich.text import Text

from prefect_ray_worker.commands.app import app, main, parse
from prefect_ray_worker.commands.overview import Overview, RunSeen, WorkerSeen
from prefect_ray_worker.commands.seen_clusters import ClusterSeen
from prefect_ray_worker.commands.status import fitting, table_of
from prefect_ray_worker.commands.terminal import length_of, print_line, print_text
from prefect_ray_worker.errors import InvalidConfiguration

COMMANDS = ("doctor", "status", "logs", "sweep")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["doctor", "-jv", "novalue"], "novalue"),
        (["doctor", "--job-variable", "=1"], "=1"),
        (["doctor", "--wait", "0"], "--wait"),
        (["doctor", "--wait", "inf"], "--wait"),
        (["doctr"], "doctor"),
        (["status"], "--pool"),
        (["status", "--pool", "p", "--most", "0"], "--most"),
        (["logs"], "RUN"),
        (["logs", "run", "--tail", "-1"], "--tail"),
        (["sweep"], "--pool"),
    ],
)
def test_bad_call_is_refused_with_the_argument(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example_that_is_a_good_call(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    example = re.search(r"Example: prefect-ray-worker ([^╭]+)", shown)
    assert example is not None
    parse(app(), example[1].split())


def test_without_a_command_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)


@pytest.mark.parametrize("command", ["status", "sweep"])
def test_without_prefect_a_command_says_what_to_set(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--pool", "research"]) == 2
    assert "PREFECT_API_URL is not set" in capsys.readouterr().err


def test_error_inside_a_group_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bound = inspect.signature(main).bind()

    async def fails() -> None:
        trouble = InvalidConfiguration("The \x1b[2Jfile is not there.")
        raise ExceptionGroup("unhandled errors", [ExceptionGroup("of a task group", [trouble])])

    monkeypatch.setattr("prefect_ray_worker.commands.app.parse", lambda *_: (fails, bound))
    assert main(["status"]) == 2
    assert capsys.readouterr().err == "The file is not there.\n"


def test_character_that_the_output_cannot_have_ends_no_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A log line with an arrow ended `logs` with a UnicodeEncodeError."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    bound = inspect.signature(print_line).bind("a → b")
    monkeypatch.setattr("prefect_ray_worker.commands.app.parse", lambda *_: (print_line, bound))
    assert main(["logs"]) == 0
    sys.stdout.flush()
    assert written.getvalue() == b"a \\u2192 b\n"


def shown(*, is_online: bool, more_runs: int) -> str:
    """Return what `status` shows of a pool with one worker."""
    workers = (WorkerSeen("w1", is_online, 90.0, 2),)
    clusters = (ClusterSeen("http://ray:8265", True, "Ray 2.60.0", 2),)
    overview = Overview("research", "READY", None, None, workers, clusters, (), more_runs)
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(table_of(overview))
    return capture.get()


def test_status_shows_a_dead_worker_and_that_none_is_online() -> None:
    start = "No worker is online: prefect worker start --pool research"
    assert start in shown(is_online=False, more_runs=0)
    assert "w1" in shown(is_online=False, more_runs=0)
    assert start not in shown(is_online=True, more_runs=0)


def test_status_says_if_its_numbers_are_those_of_the_listed_runs() -> None:
    assert shown(is_online=True, more_runs=3).count("LISTED RUNS") == 2
    assert "LISTED RUNS" not in shown(is_online=True, more_runs=0)


@pytest.mark.parametrize(("width", "has_jobs"), [(80, False), (160, True)])
def test_a_watch_counts_the_runs_for_which_the_window_is_too_low(
    width: int, has_jobs: bool
) -> None:
    """`...` stood for ten of twelve runs."""
    runs = tuple(
        RunSeen(uuid4(), f"run-{i}", "Running", 1.0, f"prefect-{uuid4()}-0123456789ab", "", "w", "")
        for i in range(30)
    )
    workers = (WorkerSeen("w", True, 1.0, 30),)
    overview = Overview("research", "READY", None, None, workers, (), runs, 5)
    window = Console(file=io.StringIO(), width=width, height=24, force_terminal=True)
    with window.capture() as capture:
        window.print(fitting(overview, window))
    said = capture.get()
    assert said.count("\n") <= 24
    assert ("RAY JOB" in said) is has_jobs
    assert f"and {35 - said.count('run-')} more runs (the window is too low)" in said
    assert said.count("run-") > 10


def test_names_that_others_chose_control_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """The name of a state, or of a pool, could set the terminal's title and hide lines."""
    evil = "\x1b]0;x\x07\x1b[2Jok"
    run = RunSeen(uuid4(), evil, evil, 1.0, evil, evil, evil, evil)
    workers = (WorkerSeen(evil, False, 90.0, 1),)
    clusters = (ClusterSeen(evil, True, evil, 1),)
    overview = Overview(evil, "READY", None, None, workers, clusters, (run,), 0)
    print_line(evil)
    console = Console(file=sys.stdout, width=200)
    console.print(table_of(overview))
    said = capsys.readouterr().out
    assert "Work pool ok: READY" in said
    assert "\x1b" not in said


def test_lengths_of_time_have_two_units_and_grow() -> None:
    seconds = (0, 59, 60, 61, 3_600, 3_660, 90_061)
    assert [length_of(s) for s in seconds] == [
        "0 s",
        "59 s",
        "1 m",
        "1 m 1 s",
        "1 h",
        "1 h 1 m",
        "1 d 1 h",
    ]
    assert all(length_of(a) != length_of(b) for a, b in pairwise(seconds))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_sentence_breaks_between_words_and_only_on_a_terminal(is_terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=20, force_terminal=is_terminal, soft_wrap=True)
    print_text(console, Text("Name the address of a Ray dashboard"))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    lines = [line.strip() for line in shown.splitlines()]
    broken = ["Name the address of", "a Ray dashboard"]
    assert lines == (broken if is_terminal else ["Name the address of a Ray dashboard"])
