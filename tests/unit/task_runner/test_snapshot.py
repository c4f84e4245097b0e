"""A task is pickled again where anything of it may be another, and only there."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import task
from prefect.cache_policies import INPUTS

from prefect_ray_worker.task_runner import modules
from prefect_ray_worker.task_runner.modules import OwnModules
from prefect_ray_worker.task_runner.snapshot import TaskSnapshot

NUMBER = 1
LIST = [1, 2]
LARGE = list(range(1_000))
OBJECT = SimpleNamespace(x=1)


class Rows(list[int]): ...


ROWS = Rows()


@pytest.fixture(autouse=True)
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file is a flow's, which task processes can load."""
    monkeypatch.setattr(modules._Process, "own", OwnModules(script=__name__))


def helper(x: int) -> Any:
    return x + NUMBER


@task(cache_policy=INPUTS, tags={"a"}, retries=1)
def small(x: int) -> Any:
    return helper(x), LIST


@task
def large(x: int) -> Any:
    return x, LARGE


@task
def reads_an_object(x: int) -> Any:
    return x, OBJECT


@task
def reads_rows() -> Any:
    return ROWS


def set_a_global() -> None:
    global NUMBER
    NUMBER += 1


CHANGES: dict[str, Callable[[], Any]] = {
    "a global of a helper": set_a_global,
    "a list that is a global": lambda: LIST.append(3),
    "a hook": lambda: small.on_completion(lambda *_: None),
    "a tag": lambda: small.tags.add("b"),
    "an attribute": lambda: setattr(small, "retries", small.retries + 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str) -> None:
    snapshot = TaskSnapshot(small)
    assert snapshot.holds(small)
    CHANGES[change]()
    assert not snapshot.holds(small)
    assert TaskSnapshot(small).holds(small)


@pytest.mark.parametrize("unsure", [large, reads_an_object, reads_rows])
def test_what_may_change_inside_is_never_taken_for_the_same(unsure: Any) -> None:
    snapshot = TaskSnapshot(unsure)
    assert not snapshot.holds(unsure)
    assert snapshot.has_same_attributes(unsure)
    unsure.on_failure(lambda *_: None)
    assert not snapshot.has_same_attributes(unsure)
