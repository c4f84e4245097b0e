"""Large parameters: many submits of one, and what is inside it."""

from typing import Any

import psutil
from prefect import flow, task, unmapped

MB = 1_000_000


class Heavy:
    """Counts how often it is pickled."""

    pickled = 0

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.pickled_before = Heavy.pickled  # the class may come with its count

    def __reduce__(self) -> Any:
        Heavy.pickled += 1
        return Heavy, (self.content,)


@task
def total(number: int, values: dict[str, bytes]) -> int:
    return number + sum(map(len, values.values()))


@task
def size(number: int, value: Heavy) -> int:
    return number + len(value.content)


@task
def pickled_so_far(value: Heavy) -> int:
    return Heavy.pickled - value.pickled_before


@task(persist_result=True)
def kept(value: bytes) -> int:
    return len(value)


@task
def inner(number: int) -> int:
    return number


def _flow(runner: Any, body: Any) -> Any:
    return flow(body, name="behaves", task_runner=runner)()


def _costs_little(runner: Any, costs_little: bool) -> bool:
    # Threads make a key for the cache of each submit's parameters.
    return costs_little or not hasattr(runner, "max_in_flight")


def _memory() -> int:
    return psutil.Process().memory_info().rss


def one_for_many_submits(runner: Any) -> Any:
    def body() -> Any:
        values = {str(i): bytes([i]) * 50_000 for i in range(100)}
        total.submit(0, values).wait()
        before = _memory()
        futures = [total.submit(i, values) for i in range(40)]
        grown = _memory() - before
        return [f.result() for f in futures], _costs_little(runner, grown < 60 * MB)

    return _flow(runner, body)


def one_for_all_of_a_map(runner: Any) -> Any:
    def body() -> Any:
        before = Heavy.pickled
        results = size.map(range(20), unmapped(Heavy(b"x" * MB))).result()
        return results, _costs_little(runner, Heavy.pickled - before <= 3)

    return _flow(runner, body)


def one_that_only_a_cache_would_read(runner: Any) -> Any:
    """Prefect makes a key for each task; nothing finds a result by it that is not persisted."""

    def body() -> Any:
        pickled = pickled_so_far.submit(Heavy(b"x" * MB)).result()
        names = [kept.submit(b"x" * MB, return_state=True).name for _ in range(2)]
        return names, _costs_little(runner, pickled == 0)

    return _flow(runner, body)


def one_that_changes_between_submits(runner: Any) -> Any:
    def body() -> Any:
        values = {"a": b"x" * MB}
        found = [total.submit(0, values).result()]
        for more in range(3):
            values[str(more)] = b"y" * MB
            found.append(total.submit(0, values).result())
        return found

    return _flow(runner, body)


def one_with_parts_that_are_given_as_well(runner: Any) -> Any:
    @task
    def has(graph: dict[str, Any], node: Any, other: Any) -> Any:
        return node is graph["nodes"][3], other is graph, len(graph["content"])

    def body() -> Any:
        nodes = [{"node": i} for i in range(5)]
        graph = {"content": b"x" * MB, "nodes": nodes}
        return [
            has.submit(graph, nodes[3], graph).result(),
            has.submit(other=graph, node=nodes[3], graph=graph).result(),
            has.map(unmapped(graph), [nodes[3], nodes[3], nodes[2]], unmapped(graph)).result(),
        ]

    return _flow(runner, body)


def one_of_a_task_that_submits(runner: Any) -> Any:
    @task
    def outer(big: bytes) -> Any:
        before = _memory()
        return inner.map(range(40)).result(), len(big), _memory() - before < 100 * MB

    return _flow(runner, lambda: outer.submit(b"x" * 10 * MB).result())
