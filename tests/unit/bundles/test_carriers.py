"""How a call asks a Prefect API that is busy or away."""

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from prefect_ray_worker.bundles import carriers
from prefect_ray_worker.bundles.carriers import patiently


class Clock:
    """Stands for the time: what sleeps moves it on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(carriers, "time", found)
    return found


def busy(wait: str) -> PrefectHTTPStatusError:
    request = httpx.Request("POST", "http://prefect/api")
    answer = httpx.Response(429, headers={"Retry-After": wait}, request=request)
    return PrefectHTTPStatusError.from_httpx_error(
        httpx.HTTPStatusError("busy", request=request, response=answer)
    )


def test_wait_begins_with_the_first_failure_and_heeds_what_the_server_asks(clock: Clock) -> None:
    """Prefect's client had used up all of it before it raised: there was one attempt."""
    answers: list[Exception | str] = [busy("40"), "there"]

    def ask() -> str:
        clock.now += 41.0  # Prefect's client waits before it raises, even if it repeats nothing
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(ask, 120.0) == "there"
    assert clock.slept == [40.0]


def test_no_attempt_is_made_after_the_deadline(clock: Clock) -> None:
    def ask() -> None:
        clock.now += 4.0
        raise httpx.ConnectError("away")

    with pytest.raises(httpx.ConnectError):
        patiently(ask, 600.0, deadline=10.0)
    assert sum(clock.slept) <= 6.0
