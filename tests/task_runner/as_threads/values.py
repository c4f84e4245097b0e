"""What the flow's own file defines: in a task it is what it is in the flow."""

import dataclasses
import enum
import functools
import random
import threading
import time
from typing import Any, Generic, TypeVar
from uuid import uuid4

import beside
from prefect import flow, task
from prefect.cache_policies import INPUTS
from pydantic import BaseModel

T = TypeVar("T")


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    tags: list[str] = dataclasses.field(default_factory=list)


class Model(BaseModel):
    n: int


class Box(BaseModel, Generic[T]):
    item: T


class Counted:
    count = 0
    lock = threading.Lock()


class Missing: ...


NOTHING = object()
MISSING = Missing()
LOCK = threading.Lock()
SETTINGS: dict[str, Any] = {"kept": 1}
CHOSEN: Any = None
CHOOSE: Any = None


@functools.lru_cache(maxsize=4)
def costly(x: int) -> list[int]:
    return [x]


@functools.lru_cache
def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def with_the_lock(x: int) -> int:
    with LOCK:
        return x + 1


def _flow(runner: Any, body: Any) -> Any:
    return flow(body, name="behaves", task_runner=runner)()


@task
def make(kind: str) -> Any:
    made = {"point": Point(1), "model": Model(n=1), "color": Color.RED, "box": Box[Point]}
    return made[kind] if kind != "box" else made["box"](item=Point(1))


@task
def is_what_it_is(value: Any) -> Any:
    return [isinstance(value, kind) for kind in (Point, Model, Color, Box[Point])]


@task(cache_policy=INPUTS, persist_result=True)
def cached(_: float, kind: str) -> Any:
    return make.fn(kind)


@task(cache_policy=INPUTS, persist_result=True)
def cached_by_value(seen: Any, _: float) -> Any:
    return random.random()


def classes_of_results_and_parameters(runner: Any) -> Any:
    def body() -> Any:
        found = {kind: make.submit(kind).result() for kind in ("point", "model", "color", "box")}
        there = {kind: is_what_it_is.submit(value).result() for kind, value in found.items()}
        return (
            [isinstance(found["point"], Point), found["point"] == Point(1)],
            [isinstance(found["model"], Model), found["model"] == Model(n=1)],
            [found["color"] is Color.RED, isinstance(found["box"], Box[Point])],
            there,
        )

    return _flow(runner, body)


def classes_of_cached_results(runner: Any) -> Any:
    def body() -> Any:
        now = time.time()
        cached.submit(now, "point").wait()
        state = cached.submit(now, "point", return_state=True)
        return state.name, isinstance(state.result(), Point), state.result() == Point(1)

    return _flow(runner, body)


def a_cached_result_that_another_process_replaces(runner: Any) -> Any:
    key = uuid4().hex

    @task(persist_result=True, cache_key_fn=lambda *_: key)
    def stored(value: str) -> str:
        return value

    @task
    def replaces() -> str:
        return stored.with_options(refresh_cache=True).submit("second").result()

    @task
    def reads() -> Any:
        # In two processes, of which one has stored the first result.
        return stored("third"), stored.submit("fourth").result()

    def body() -> Any:
        first = stored.submit("first").result()
        return first, replaces.submit().result(), reads.submit().result()

    return _flow(runner, body)


def keys_of_the_cache(runner: Any) -> Any:
    now = time.time()

    def body() -> Any:
        return cached_by_value.submit(Point(1), now).result()

    return _flow(runner, body) == _flow(runner, body)


def class_attributes_survive_results(runner: Any) -> Any:
    @task
    def gives() -> Any:
        return Counted

    def body() -> Any:
        Counted.count = 5
        first = gives.submit().result()
        Counted.count = 6
        second = gives.submit().result()
        return Counted.count, first is Counted, second is Counted, second.count

    return _flow(runner, body)


def sentinels(runner: Any) -> Any:
    @task
    def compares(nothing: Any, missing: Any = MISSING) -> Any:
        return nothing is NOTHING, missing is MISSING

    @task
    def passes(value: Any) -> Any:
        return value

    def body() -> Any:
        returned = passes.submit(NOTHING).result(), passes.submit([MISSING]).result()[0]
        return (
            compares.submit(NOTHING).result(),
            compares.submit(NOTHING, MISSING).result(),
            (returned[0] is NOTHING, returned[1] is MISSING),
            passes.submit(dataclasses.MISSING).result() is dataclasses.MISSING,
        )

    return _flow(runner, body)


def subclasses_and_generics_made_in_tasks(runner: Any) -> Any:
    @task
    def makes() -> Any:
        @dataclasses.dataclass(frozen=True)
        class Further(Point):
            n: int = 7

        return Further(1).n, Further(1).tags, Box[Point](item=Point(2)).item == Point(2)

    return _flow(runner, lambda: makes.submit().result())


def caches_of_functions(runner: Any) -> Any:
    @task
    def is_kept() -> Any:
        return costly(1) is costly(1), costly(1)[0], fibonacci(30)

    return _flow(runner, lambda: is_kept.submit().result())


def what_cannot_be_pickled(runner: Any) -> Any:
    @task
    def locks(x: int) -> int:
        with Counted.lock, LOCK:
            return with_the_lock.__name__ == "with_the_lock" and x

    return _flow(
        runner,
        lambda: (
            locks.submit(1).result(),
            with_lock_outside.submit(1).result(),
            beside.with_lock.submit(2).result(),
        ),
    )


@task
def with_lock_outside(x: int) -> int:
    return with_the_lock(x)


@task
def reads() -> Any:
    return CHOSEN, dict(SETTINGS), _helped(), CHOOSE and CHOOSE(-1)


def _helped() -> Any:
    return CHOSEN, sorted(SETTINGS), Counted.count


def globals_that_the_flow_has_set(runner: Any) -> Any:
    global CHOSEN, CHOOSE

    def body() -> Any:
        global CHOSEN, CHOOSE
        CHOSEN, CHOOSE = "first", abs
        SETTINGS["a"] = 1
        Counted.count = 1
        beside.CHOSEN = "by the flow"
        first = reads.submit().result(), beside.chosen.submit().result()
        CHOSEN, CHOOSE = Point(2), with_the_lock
        SETTINGS["b"] = 2
        Counted.count = 2
        again = reads.submit().result()
        CHOSEN = "first"
        return repr((first, again, reads.submit().result()))

    found = _flow(runner, body)
    CHOSEN = CHOOSE = None
    SETTINGS.clear()
    return found


def nested_tasks_of_the_file(runner: Any) -> Any:
    @task
    def outer() -> Any:
        point = make.submit("point").result()
        return isinstance(point, Point), is_what_it_is.submit(point).result()

    return _flow(runner, lambda: outer.submit().result())


def errors_of_the_file(runner: Any) -> Any:
    class Local(Exception): ...

    @task
    def raises(kind: type[Exception]) -> None:
        raise kind("mine")

    def body() -> Any:
        own = raises.submit(Mine).result(raise_on_failure=False)
        local = raises.submit(Local).result(raise_on_failure=False)
        return isinstance(own, Mine), isinstance(local, Local)

    return _flow(runner, body)


class Mine(Exception): ...
