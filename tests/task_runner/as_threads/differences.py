"""What is different from threads, and why; the table of the migration page is made of it."""

import threading
from dataclasses import dataclass
from typing import Any

from prefect import flow, task
from prefect.transactions import transaction

SEEN: list[int] = []


@dataclass(frozen=True)
class Difference:
    """One row of the table.

    Attributes:
        what: What is different.
        threads: How it is in threads.
        here: How it is with RayTaskRunner.
        why: The reason.
        shown: What a behaviour of this file comes to: in threads, and here.
    """

    what: str
    threads: str
    here: str
    why: str
    shown: tuple[Any, Any] | None = None


DIFFERENCES = {
    "a_list_that_is_filled_after_the_submit": Difference(
        "a parameter that the flow changes after the submit",
        "the task sees the change, if it runs late enough",
        "the task gets it as it was at the submit",
        "a task has a copy, in another process",
        ([1, 2], [1]),
    ),
    "a_global_that_a_task_changes": Difference(
        "a global that a task changes",
        "the flow and other tasks see the change",
        "it stays in the task's process; return what others need",
        "processes share no memory",
        ([1], []),
    ),
    "an_object_that_goes_through_a_task": Difference(
        "`is` between an object and what a task returns of it",
        "the same object",
        "an equal one; sentinels, classes and enum members of the flow's file are the same",
        "results are pickled",
        (True, False),
    ),
    "a_transaction_around_a_submit": Difference(
        "`with transaction()` around `.submit`",
        "rolls the task back",
        "refused with `TransactionAround`",
        "a task commits in its own process, which has no way back to the flow's transaction",
        ("committed", "TransactionAround"),
    ),
    "a_lock_as_a_parameter": Difference(
        "a parameter or result that cannot be pickled",
        "works",
        "`Unpicklable` at the submit, or a Failed task with the reason",
        "it cannot be sent to another process",
        ("lock", "Unpicklable"),
    ),
    "tasks": Difference(
        "how many tasks run at once",
        "as many as are submitted",
        "one for each CPU, unless remote_options say otherwise",
        "CPUs are what Ray shares out",
    ),
    "waiting": Difference(
        "a task that waits for another in a thread of its own (`asyncio.to_thread(future.result)`)",
        "needs nothing",
        "keeps its CPU meanwhile; GPUs and other resources are kept by every wait",
        "Ray takes the CPU back from a task whose main thread waits, and nothing else",
    ),
    "main": Difference(
        "classes of a script that is started with `python flow.py`",
        "the flow's own",
        "others of the same name in each process, except for what comes back of them",
        "no other process can import `__main__`; the file of a deployment has a name",
    ),
    "arrays": Difference(
        "arrays above 64 kB in parameters and results",
        "can be changed",
        "are read-only: copy before you change them",
        "they are views into Ray's store",
    ),
    "large globals": Difference(
        "globals that take more than 2 ms to pickle, changed between two submits of a task",
        "seen at once",
        "seen after twenty times as long",
        "pickling them for each submit would be most of its cost",
    ),
}


def table() -> str:
    """Return the table for the migration page."""
    rows = [f"| {d.what} | {d.threads} | {d.here} | {d.why} |" for d in DIFFERENCES.values()]
    return "\n".join(["| | threads | here | why |", "|---|---|---|---|", *rows])


def _flow(runner: Any, body: Any) -> Any:
    return flow(body, name="differs", task_runner=runner)()


def a_list_that_is_filled_after_the_submit(runner: Any) -> Any:
    started = [1]

    @task
    def late(values: list[int]) -> list[int]:
        import time

        time.sleep(1)
        return list(values)

    def body() -> Any:
        future = late.submit(started)
        started.append(2)
        return future.result()

    return _flow(runner, body)


def a_global_that_a_task_changes(runner: Any) -> Any:
    @task
    def changes() -> None:
        SEEN.append(1)

    def body() -> Any:
        changes.submit().wait()
        return list(SEEN)

    return _flow(runner, body)


def an_object_that_goes_through_a_task(runner: Any) -> Any:
    @task
    def passes(value: Any) -> Any:
        return value

    def body() -> Any:
        value = {"a": [1]}
        return passes.submit(value).result() is value

    return _flow(runner, body)


def a_transaction_around_a_submit(runner: Any) -> Any:
    @task
    def anything() -> str:
        return "committed"

    def body() -> Any:
        with transaction():
            try:
                return anything.submit().result()
            except RuntimeError as exc:
                return type(exc).__name__

    return _flow(runner, body)


def a_lock_as_a_parameter(runner: Any) -> Any:
    @task
    def name_of(value: Any) -> str:
        return type(value).__name__

    def body() -> Any:
        try:
            return name_of.submit(threading.Lock()).result()
        except TypeError as exc:
            return type(exc).__name__

    return _flow(runner, body)
