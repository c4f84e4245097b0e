"""`LookPace`: the workers of a large pool share what their looks cost the Prefect server."""

import anyio
import pytest

from prefect_ray_worker.runs.recovery import reconcile
from prefect_ray_worker.runs.recovery.reconcile import LookPace

TEN = frozenset(f"worker-{i}" for i in range(10))
MANY = 10_000


async def test_with_few_runs_every_look_covers_all() -> None:
    pace = LookPace()
    pace.saw_online(TEN)
    pace.listed(200, took=100.0)
    assert pace.covers_all()


async def test_ten_workers_that_list_many_runs_rest_ten_times_as_long_as_one() -> None:
    pace = LookPace()
    pace.saw_online(TEN)
    took = 0.01
    pace.listed(MANY, took=took)
    assert not pace.covers_all()
    await anyio.sleep(took * 5)
    assert not pace.covers_all(), "a single worker's rest"
    await anyio.sleep(took * 10 * 4)
    assert pace.covers_all()


async def test_rest_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "_LONGEST_REST_SECONDS", 0.01)
    pace = LookPace()
    pace.listed(MANY, took=1000.0)
    await anyio.sleep(0.02)
    assert pace.covers_all()


async def test_worker_that_has_gone_ends_the_rest() -> None:
    pace = LookPace()
    pace.saw_online(TEN)
    pace.listed(MANY, took=100.0)
    pace.saw_online(TEN | {"new"})
    assert not pace.covers_all(), "a new worker leaves nothing behind"
    pace.saw_online(TEN)
    assert pace.covers_all()
