"""What a caller asks Prefect while it follows the run of its call."""

from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.client.schemas.objects import Log
from prefect.states import Completed, Running

from prefect_ray_worker.adhoc import following, log_tail, shared_look
from prefect_ray_worker.adhoc.following import Following, RayFlowRunFuture
from prefect_ray_worker.adhoc.log_tail import LogTail
from prefect_ray_worker.bundles import carriers
from tests.unit.adhoc.stub_api import StubApi
from tests.unit.bundles.test_carriers import Clock


def test_each_question_outlasts_minutes_without_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but one of them failed once Prefect had been away for half a minute."""
    clock, api = Clock(), StubApi(Completed())
    away_since: dict[str, float] = {}

    def away(question: str) -> None:
        since = away_since.setdefault(question, clock.now)
        clock.now += 1.0
        if clock.now - since < 120.0:
            raise httpx.ConnectError("away")

    api.before = away
    monkeypatch.setattr(carriers, "time", clock)
    monkeypatch.setattr(following, "get_client", lambda **_: api)
    future = RayFlowRunFuture[Any](uuid4())
    with Following(future, LogTail(future.flow_run_id)) as it:
        it.go_on()
    future.attempt = "the last one"
    future.state_with_data()
    assert set(away_since) == {"run", "history", "logs", "answer"}


@pytest.mark.parametrize(("calls", "most"), [(1, 190), (20, 500)])
def test_calls_that_print_their_logs_ask_prefect_seldom(
    calls: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One asked 280 times a minute, which is more than Prefect Cloud's smallest plan has."""
    clock, api = Clock(), StubApi(Running())
    for module in (following, log_tail, shared_look):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(following, "get_client", lambda **_: api)
    now = datetime.now(UTC)
    api.logs = [Log(name="x", level=0, message="a line", timestamp=now, flow_run_id=uuid4())]
    futures = [RayFlowRunFuture[Any](uuid4()) for _ in range(calls)]
    with ExitStack() as stack:
        calling = [
            stack.enter_context(Following(future, LogTail(future.flow_run_id)))
            for future in futures
        ]
        while clock.now < 60.0:
            for each in calling:
                each._step(None)
            clock.now += 0.5
    assert api.asked.total() <= most, api.asked
    assert api.asked["logs"] >= 50
