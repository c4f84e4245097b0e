"""Runs whose queue was deleted: found, within ten minutes, and at little cost."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import anyio
import pytest
from prefect.client.orchestration import PrefectClient

from prefect_ray_worker.prefect_api.queueless import QueuelessRuns
from tests.unit.logs.kit import run

RUN, POOL = UUID(int=1), UUID(int=2)
LOOKS_EVERY = 15.0
"""Seconds: half a heartbeat of a worker."""


@dataclass
class Answer:
    content: Any

    def json(self) -> Any:
        return self.content


@dataclass
class Prefect:
    """Stands for Prefect, which has one run.

    Attributes:
        queue: That of the run; None once it is deleted.
        lists: How often it has listed all active runs of the server.
    """

    queue: UUID | None
    lists: int = 0

    async def request(self, _: str, path: str, *, json: dict[str, Any]) -> Answer:
        if path == "/flow_runs/count":
            return Answer(0 if "work_pools" in json and self.queue is None else 1)
        self.lists += "state" in json["flow_runs"] and not json["offset"]
        return Answer([] if json["offset"] else [self._record()])

    def _record(self) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat()
        return {
            "id": str(RUN),
            "state": {"id": str(UUID(int=3)), "type": "RUNNING", "name": "R", "timestamp": now},
            "labels": {"prefect.worker.type": "ray", "prefect.work-pool.id": str(POOL)},
            "work_queue_id": self.queue and str(self.queue),
        }


@pytest.mark.parametrize("jitter", [-0.2, 0.2])
def test_a_run_whose_queue_is_deleted_is_found_within_ten_minutes(
    jitter: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda *_: 1 + jitter)
    prefect = Prefect(queue=UUID(int=4))
    runs = QueuelessRuns(cast("PrefectClient", prefect))

    async def seconds_until_found() -> float:
        assert await runs.active(POOL, "pool") == {}
        assert prefect.lists == 0, "two counts are enough"
        prefect.queue = None
        for look in range(100):
            if found := await runs.active(POOL, "pool"):
                assert list(found) == [RUN]
                return look * LOOKS_EVERY
            await anyio.sleep(LOOKS_EVERY)
        raise AssertionError("never found")

    assert 300 < run(seconds_until_found()) <= 600
