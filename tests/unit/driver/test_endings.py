"""The hooks that a driver runs in the place of Prefect's engine."""

import sys
from typing import Any
from uuid import uuid4

from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.states import Cancelling

from prefect_ray_worker.driver.endings import run_hooks


def test_a_hook_that_exits_stops_neither_the_others_nor_the_end_of_the_run() -> None:
    ran: list[str] = []

    @flow
    def hooked() -> None: ...

    def leaves(*_: Any) -> None:
        sys.exit(0)

    run = FlowRun(id=uuid4(), name="run", flow_id=uuid4())
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        run_hooks([leaves, lambda *_: ran.append("next")], hooked, run, Cancelling())
    assert ran == ["next"]
