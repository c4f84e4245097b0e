"""What of the flow's own modules travels by name, and what travels with its content."""

import threading
from collections import Counter, deque
from typing import Any

import pytest
from prefect import task

from prefect_ray_worker.task_runner import modules
from prefect_ray_worker.task_runner.modules import OwnModules, globals_of
from prefect_ray_worker.task_runner.pickling import pack, pack_whole, unpack


class Base: ...


class AttrDict(dict[str, Any]): ...


class Rows(list[int]): ...


class Names(set[str]): ...


class Counts(Counter[str]): ...


class Last(deque[int]): ...


class Slotted(Base):
    __slots__ = ("x",)


class Bare:
    __slots__ = ()


class Local(threading.local): ...


CONFIG, ROWS, NAMES, COUNTS, LAST = AttrDict(), Rows(), Names(), Counts(), Last()
SLOTTED, MISSING, BARE, LOCAL = Slotted(), Base(), Bare(), Local()


@pytest.fixture(autouse=True)
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file is a flow's, which task processes can load."""
    monkeypatch.setattr(modules._Process, "own", OwnModules(script=__name__))


@task
def reads_all() -> Any:
    return CONFIG, ROWS, NAMES, COUNTS, LAST, SLOTTED, MISSING, BARE, LOCAL


def test_content_beside_the_dict_of_an_object_travels() -> None:
    """A task saw the empty ones of the import: a subclass of `dict` was taken for a sentinel."""
    CONFIG["lr"] = 0.9
    ROWS.append(1)
    NAMES.add("a")
    COUNTS["a"] += 1
    LAST.append(1)
    SLOTTED.x = 7
    found = globals_of(reads_all, pack_whole)
    assert {name for _, name in found} == {"CONFIG", "ROWS", "NAMES", "COUNTS", "LAST", "SLOTTED"}
    for value in (CONFIG, ROWS, NAMES, COUNTS, LAST):
        arrived = unpack(pack(value))
        assert (arrived, arrived is value) == (value, False)
    assert unpack(pack(SLOTTED)).x == 7


@pytest.mark.parametrize("value", [MISSING, BARE, LOCAL])
def test_an_object_without_content_is_the_same_one_in_a_task(value: Any) -> None:
    assert unpack(pack([value]))[0] is value
