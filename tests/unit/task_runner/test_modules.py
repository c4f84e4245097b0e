"""What of the flow's own modules travels by name, and what travels with its content."""

import functools
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any, ClassVar, cast

import pytest
import ray
from prefect import task

from prefect_ray_worker.task_runner import modules
from prefect_ray_worker.task_runner.modules import OwnModules, globals_of
from prefect_ray_worker.task_runner.pending import TaskPreparer
from prefect_ray_worker.task_runner.pickling import Packed, pack, pack_whole, unpack
from prefect_ray_worker.task_runner.process import TaskProcess


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


class Dots(AttrDict):
    """Raises KeyError, and not AttributeError, for a name that it does not have."""

    __getattr__ = dict[str, Any].__getitem__


class Deferred:
    """Answers every name with another one of its kind."""

    def __init__(self, path: tuple[str, ...] = ()) -> None:
        self.path = path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__reduce") or name == "__setstate__":
            raise AttributeError(name)
        return Deferred((*self.path, name))


class Decorated:
    """A decorator that is a class."""

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)

    def __call__(self) -> Any: ...


class Holder:
    dots = Dots(b=2)
    deferred = Deferred()
    numbers: ClassVar = [1]

    @classmethod
    @functools.lru_cache
    def cached(cls) -> Any:
        return CONFIG


DOTS, DEFERRED = Dots(a=1), Deferred()
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


@task
def reads_odd_ones() -> Any:
    return DOTS, DEFERRED, Holder.dots, Holder.deferred, Holder.cached()


def test_objects_with_attributes_of_any_name_travel() -> None:
    """One raised KeyError, and the other was followed for ever: each had to have `__wrapped__`."""
    found = {name for _, name in globals_of(reads_odd_ones, pack_whole)}
    assert found == {
        *("DOTS", "DEFERRED", "CONFIG"),
        *("Holder.dots", "Holder.deferred", "Holder.numbers"),
    }


@Decorated
def read_config() -> Any:
    return CONFIG


@functools.wraps(task(lambda: ROWS))
def wraps_a_task() -> Any: ...


@functools.lru_cache
@Decorated
def read_names() -> Any:
    return NAMES


@task
def reads_by_wrappers() -> Any:
    return read_config, wraps_a_task, read_names


def test_wrappers_are_followed_to_what_they_wrap() -> None:
    found = {name for _, name in globals_of(reads_by_wrappers, pack_whole)}
    assert found >= {"CONFIG", "ROWS", "NAMES"}


TABLE = bytearray(1_000_000)


@task
def reads_table() -> int:
    return len(TABLE)


class Service:
    @task
    def work(self) -> int:
        return len(TABLE)


SERVICE = Service()


@pytest.mark.parametrize(
    "variant",
    [lambda: reads_table.with_options(retries=1), lambda: SERVICE.work],
    ids=["with_options", "a method"],
)
def test_variants_of_a_task_send_and_keep_its_globals_once(
    variant: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 of `with_options` stored a global of 20 MB 20 times, and a process kept all of them."""
    stored: list[Packed] = []
    monkeypatch.setattr(ray, "put", lambda packed: stored.append(packed) or len(stored) - 1)
    monkeypatch.setattr(ray, "get", stored.__getitem__)
    for kept in ("_tasks", "_globals"):
        monkeypatch.setattr(TaskProcess, kept, OrderedDict[bytes, Any]())
    preparer, submitted = TaskPreparer(cast("Any", None)), []
    for _ in range(3):
        submitted.append(pickled := preparer._pickled(variant()))
        loaded: Any = TaskProcess.task(pickled.blob, pickled.globals_blob)
        assert loaded.fn.__name__ in ("reads_table", "work")
    assert len(stored) == 1
    assert len(TaskProcess._globals) == 1


def compute(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


class Slow:
    """Takes as many seconds as it says to be pickled."""

    seconds = 0.0
    spend = staticmethod(compute)

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        self.spend(self.seconds)
        return type(self), (self.number,)


SLOW = Slow(0)


@task
def reads_slow() -> int:
    return SLOW.number


def pickled_after_changes(slow_ones: list[bool], monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Change a global and pickle a task, each time; return which changes the pickles have."""
    preparer, seen = TaskPreparer(cast("Any", None)), []
    for number, is_slow in enumerate(slow_ones):
        monkeypatch.setattr(Slow, "seconds", 0.03 if is_slow else 0.0)
        SLOW.number = number
        blob = preparer._pickled(reads_slow).globals_blob
        assert blob is not None
        seen.append(unpack(blob.load()[__name__, "SLOW"].packed).number == number)
    return seen


@pytest.mark.parametrize("once", [0, 1])
def test_a_task_that_took_long_to_pickle_once_is_pickled_for_each_submit(
    once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection of garbage, or an import, hid changes of globals for half a second or more."""
    slow_ones = [number == once for number in range(4)]
    assert pickled_after_changes(slow_ones, monkeypatch) == [True] * 4


def test_a_task_that_waits_for_the_cpu_is_pickled_for_each_submit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine, a task saw the value that a global had before the flow changed it."""
    monkeypatch.setattr(Slow, "spend", staticmethod(time.sleep))
    assert pickled_after_changes([True] * 4, monkeypatch) == [True] * 4


def test_a_task_that_always_takes_long_to_pickle_is_pickled_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert pickled_after_changes([True] * 4, monkeypatch) == [True, True, False, False]
