"""The line with which a driver tells the worker why its run has no result."""

import re

import pytest

from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import Diagnosis, diagnosed
from prefect_ray_worker.shared.log_marks import mark, seal_of
from prefect_ray_worker.shared.verdict_line import (
    find_verdict,
    format_verdict,
    without_verdicts,
)

OURS, OTHER = "0123456789ab", "ba9876543210"
VERDICT = diagnosed(Category.OUT_OF_MEMORY, 'It needed\n"much" memory.\x1b[31m')


def test_a_verdict_is_read_back() -> None:
    text = f"printed\n{format_verdict(VERDICT, OURS)}\nRunning entrypoint for job x\n"
    assert find_verdict(text, OURS) == VERDICT


def test_the_last_verdict_counts() -> None:
    first = diagnosed(Category.FLOW_NOT_LOADED, "It came too early.")
    text = "\n".join(format_verdict(d, OURS) for d in (first, VERDICT))
    assert find_verdict(text, OURS) == VERDICT


@pytest.mark.parametrize(
    "text",
    [
        "",
        "OutOfMemory: pool 3 is at 80 %",
        '{"category": "OutOfMemory", "cause": "x", "advice": "y"}',
        format_verdict(VERDICT, OTHER),
        seal_of(OURS) + '{"category": "OutOfMemory", "cause": "cut off by Ra',
        seal_of(OURS) + '{"category": "Nonsense", "cause": "x", "advice": "y"}',
        seal_of(OURS) + "{" * 5000,
        mark("OutOfMemory: x", seal=seal_of(OURS), is_sent=False, level=20, when=0),
    ],
)
def test_nothing_else_is_taken_for_one(text: str) -> None:
    assert find_verdict(text, OURS) is None


def test_readers_see_the_json_and_nothing_else() -> None:
    line = format_verdict(VERDICT, OURS)
    # `ANSI_ESC_PATTERN` of state_head.py, Ray 2.60.
    shown = re.sub(rb"\x1b\x5b[(\x30-\x39)\x3b]+\x6d", b"", line.encode()).decode()
    assert shown.startswith('{"category": "OutOfMemory", ')
    assert shown.isprintable()


def test_a_long_cause_leaves_room_in_rays_message() -> None:
    line = format_verdict(Diagnosis(Category.JOB_FAILED, "x" * 10**6, "y" * 10**6), OURS)
    assert len(line) < 20_000
    assert find_verdict(line, OURS) is not None


def test_verdicts_can_be_left_out() -> None:
    text = f"before\nunfinished{format_verdict(VERDICT, OTHER)}\nafter"
    assert without_verdicts(text) == "before\nunfinished\nafter"
