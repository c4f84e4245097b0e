"""What a caller asks Prefect while it follows the run of its call."""

from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.states import Completed

from prefect_ray_worker.adhoc import following
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
