"""`Reconciler`: what a look that fails leaves to the next one."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.prefect_api.active_runs import ActiveRun
from prefect_ray_worker.runs.recovery import reconcile
from prefect_ray_worker.runs.recovery.labels import Worker, owner_labels
from prefect_ray_worker.runs.recovery.ownership import Place
from prefect_ray_worker.runs.recovery.reconcile import Reconciler
from prefect_ray_worker.runs.registry import FollowedRuns
from prefect_ray_worker.shared.ids import attempt_name

ME = Worker("me", "aaa")


class Prefect:
    """Stands for Prefect, which has runs that have ended, and fails if it is told to."""

    def __init__(self, *ended: ActiveRun) -> None:
        self._ended = ended
        self.fails = False
        self.claimed: list[UUID] = []

    async def active(self, *_: object) -> dict[UUID, ActiveRun]:
        return {}

    async def online_workers(self, _: str) -> frozenset[str]:
        return frozenset({ME.name})

    async def ended(self, _: UUID, since: datetime) -> dict[UUID, ActiveRun]:
        return {run.id: run for run in self._ended if run.since >= since}

    async def some(self, ids: set[UUID]) -> dict[UUID, ActiveRun]:
        if self.fails:
            raise TimeoutError
        return {run.id: run for run in self._ended if run.id in ids}

    async def label(self, run_id: UUID, _: object) -> None:
        self.claimed.append(run_id)

    async def states(self, _: UUID) -> list[Any]:
        return []

    async def read(self, _: UUID) -> None:
        """Answer that the run was deleted: nothing is left to adopt."""


class Adoption:
    """Has the clusters of all runs."""

    async def place_of(self, *_: object) -> Place:
        return Place.OURS


async def test_a_failed_request_does_not_lose_the_runs_with_logs_to_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One failure after an outage lost what had ended in it: its logs, and its open children."""
    monkeypatch.setattr(reconcile, "_CLAIM_SECONDS", 0)
    run_id = uuid4()  # also names its only attempt
    gone = Worker("gone", "bbb")
    labels: dict[str, Any] = {**owner_labels(gone, attempt_name(run_id), None, None)}
    since = datetime.now(UTC) - timedelta(minutes=10)
    run = ActiveRun(run_id, StateType.COMPLETED, uuid4(), "", since, labels, None, None)
    prefect = Prefect(run)
    services: Any = SimpleNamespace(
        flow_runs=prefect,
        lease=SimpleNamespace(renew=lambda _: None),
        unreachable_limit=600.0,
        timing=SimpleNamespace(claim_grace=60.0),
    )
    pool: Any = SimpleNamespace(id=uuid4(), name="pool")
    adoption: Any = Adoption()
    followed = FollowedRuns(lambda _: None)
    reconciler = Reconciler(ME, lambda: pool, services, followed, adoption, interval=0.01)
    prefect.fails = True
    with pytest.raises(TimeoutError):
        await reconciler.look()
    prefect.fails = False
    for _ in range(4):
        await reconciler.look()
    assert prefect.claimed == [run.id]
