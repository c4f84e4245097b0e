"""The wait of a claimed run that is cancelled meanwhile, in the worst moment."""

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import anyio
import pytest

from prefect_ray_worker.runs.preparing import Preparing


@pytest.mark.parametrize("is_told", [True, False])
async def test_run_that_is_cancelled_while_it_is_reported_as_crashed(is_told: bool) -> None:
    """Prefect was told twice, which ended the worker."""
    services: Any = SimpleNamespace(in_background=lambda *_: None)
    followed: Any = SimpleNamespace(claim_of=lambda _: uuid4())
    preparing = Preparing(services, followed)
    flow_run: Any = SimpleNamespace(id=uuid4())
    told: list[Any] = []

    async def submit(*, task_status: anyio.abc.TaskStatus[Any]) -> None:
        with preparing.until_begun(flow_run, task_status):
            if is_told:
                task_status.started("failed")
            preparing._scopes[flow_run.id].cancel()
            await anyio.sleep(30)
        told.append("the worker goes on")

    async with anyio.create_task_group() as tasks:
        told.append(await tasks.start(submit))
    assert sorted(map(str, told)) == sorted(["failed" if is_told else "None", "the worker goes on"])
