"""Log lines, cleaned."""

import pytest

from prefect_ray_worker.diagnosis.text import clean, last_line, useful_lines
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import diagnosed
from prefect_ray_worker.shared.verdict_line import format_verdict


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("\x1b[36m(f pid=1)\x1b[0m hi\n", ["(f pid=1) hi"]),
        ("\x1b]0;title\x07hi", ["hi"]),
        (" 10%|#  |\r100%|###|\r\ndone", ["100%|###|", "done"]),
        ("a\r\nb\r\n\n  \n", ["a", "b"]),
        ("Looking in https://me:pass@host/simple", ["Looking in https://***@host/simple"]),
        ("", []),
    ],
)
def test_clean(text: str, lines: list[str]) -> None:
    assert clean(text) == lines


def test_only_useful_lines_stay() -> None:
    text = """\
Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):
2026-11-23 10:20:42,619	INFO job_manager.py:581 -- Runtime env is setting up.
Running entrypoint for job prefect-1: exec python -m prefect_ray_worker.driver a b
10:20:44.123 | INFO    | Flow run 'x' - Beginning flow run
10:20:45.123 | ERROR   | Flow run 'x' - It failed
Traceback (most recent call last):
  File "/usr/lib/python3.11/asyncio/tasks.py", line 489, in wait_for
    return fut.result()
           ^^^^^^^^^^^^
  File "/home/me/flow.py", line 3, in helper
    return 1 / 0
           ~~^~~
ZeroDivisionError: division by zero
"""
    text += format_verdict(diagnosed(Category.OUT_OF_MEMORY), "0123456789ab")
    assert useful_lines(text) == (
        "10:20:45.123 | ERROR   | Flow run 'x' - It failed",
        '  File "/home/me/flow.py", line 3, in helper',
        "    return 1 / 0",
        "ZeroDivisionError: division by zero",
    )
    assert last_line(text) == "ZeroDivisionError: division by zero"


def test_many_and_long_lines_are_cut_and_keep_their_ends() -> None:
    lines = useful_lines("\n".join(f"line {i}" for i in range(100)) + f"\nbegin{'x' * 5000}end")
    assert len(lines) == 10
    assert lines[-1].startswith("begin")
    assert lines[-1].endswith("end")
    assert len(lines[-1]) < 500


def test_a_text_of_nothing_has_no_last_line() -> None:
    assert last_line("Running entrypoint for job x: true\n\n") == ""
