"""Which parameters a run shows, and which travel by pickle."""

import enum
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pydantic
import pytest
from prefect import flow

from prefect_ray_worker.bundles.parameters import split_parameters


class Shape(pydantic.BaseModel):
    side: int


class Color(enum.StrEnum):
    RED = "red"


@dataclass
class Span:
    start: datetime
    end: datetime


SUMMER = datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin"))


@flow
def takes(plain: Any, shape: Shape, other: Any = None) -> None: ...


@pytest.mark.parametrize(
    "value",
    [
        *[(1, 2), {1: "a"}, float("nan"), Shape(side=1), b"x", [Color.RED], lambda: 1],
        "x" * 300_000,
        SUMMER,
        [SUMMER],
        ["caf\udce9.txt"],
    ],
)
def test_parameter_that_json_would_change_is_pickled(value: Any) -> None:
    """Prefect's own bundles send a class instance as a dict, and a lambda as `{}`."""
    shown, by_pickle = split_parameters(takes, {"plain": value, "shape": Shape(side=1)})
    assert by_pickle == {"plain": value}
    assert shown == {"plain": f"<{type(value).__name__}>", "shape": {"side": 1}}


@flow
def takes_a_color(color: Color, own: threading.Event) -> None: ...


def test_value_that_json_does_not_give_back_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """Prefect logged "Parameter validation failed" in the notebook, and the call went on."""
    event = threading.Event()
    _, by_pickle = split_parameters(takes_a_color, {"color": Color.RED, "own": event})
    assert by_pickle == {"own": event}
    assert caplog.records == []


@flow
def takes_times(start: datetime, days: list[datetime], span: Span) -> None: ...


def test_time_zones_arrive_and_not_their_offsets_of_a_moment() -> None:
    """Validation makes a fixed offset of what JSON has: half a year later it is an hour wrong."""
    values = {"start": SUMMER, "days": [SUMMER], "span": Span(SUMMER, SUMMER)}
    _, by_pickle = split_parameters(takes_times, values)
    assert by_pickle == values
    start = datetime(2026, 7, 1, tzinfo=UTC)
    values = {"start": start, "days": [start, start.replace(tzinfo=None)]}
    shown, by_pickle = split_parameters(takes_times, values | {"span": Span(start, start)})
    assert by_pickle == {}
    assert shown["start"] == "2026-07-01T00:00:00+00:00"


def test_parameters_together_are_not_longer_than_a_server_takes() -> None:
    """Three of 200 KiB, each short enough, were answered with 422."""
    values = {name: name * 200 * 1024 for name in ("a", "b", "c")}

    @flow
    def takes_three(a: str, b: str, c: str) -> None: ...

    shown, by_pickle = split_parameters(takes_three, values)
    assert by_pickle == {"b": values["b"], "c": values["c"]}
    assert shown == {"a": values["a"], "b": "<str>", "c": "<str>"}


@pytest.mark.parametrize("value", [1, 1.0, "a", None, True, [1, {"a": [None]}], []])
def test_parameter_that_json_keeps_is_shown_on_the_run(value: Any) -> None:
    shown, by_pickle = split_parameters(takes, {"plain": value, "shape": Shape(side=1)})
    assert (shown["plain"], by_pickle) == (value, {})
