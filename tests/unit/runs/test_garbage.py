"""Full garbage collections leave out what very many runs hold."""

import gc
from collections.abc import Iterator

import pytest

from prefect_ray_worker.runs.registry import SparedRuns


@pytest.fixture(autouse=True)
def _thaw() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    ("runs", "at_once", "spared"), [(199, 199, False), (1000, 20, False), (200, 200, True)]
)
def test_only_of_many_at_once(runs: int, at_once: int, spared: bool) -> None:
    gc.unfreeze()
    before = gc.get_freeze_count()
    some = SparedRuns()
    for i in range(runs):
        some.one_more(min(i + 1, at_once))
    assert (gc.get_freeze_count() > before) == spared


def test_runs_that_come_later_are_spared_as_well() -> None:
    """A run holds five objects here: frozen ones may go meanwhile, but never so many."""
    some, held = SparedRuns(), list[list[list[int]]]()
    for _ in range(3):
        before = gc.get_freeze_count()
        for _ in range(200):
            held.append([[] for _ in range(4)])
            some.one_more(200)
        assert gc.get_freeze_count() >= before + 800
