"""What is different from threads, and why.

`python -m tests.task_runner.as_threads.differences` writes the table of the migration page; `make
docs` does so, and a test checks the page.
"""

import logging
import os
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
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
        "the task gets the value at the submit",
        "a task has a copy, in another process",
        ([1, 2], [1]),
    ),
    "a_global_that_a_task_changes": Difference(
        "a global that a task changes",
        "the flow and other tasks see the change",
        "the change stays in the task's process; return what others need",
        "processes share no memory",
        ([1], []),
    ),
    "an_object_that_goes_through_a_task": Difference(
        "`is` between an object and the one that a task returns",
        "the same object",
        "an equal object; sentinels, classes and enum members of the flow's file are the same",
        "results are pickled",
        (True, False),
    ),
    "a_transaction_around_a_submit": Difference(
        "`with transaction()` around `.submit`",
        "rolls the task back",
        "raises `TransactionAround`",
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
    "a_subflow_whose_runner_asks_for_another_ray": Difference(
        "a subflow with its own runner",
        "has its own pool of threads",
        "uses the flow's connection to Ray; a warning names the `init_kwargs` that are ignored",
        "a process has one connection to Ray",
        ([], ["runtime_env"]),
    ),
    "a_context_variable_of_the_flow": Difference(
        "a `ContextVar`, `os.environ` or other process state that the flow has set",
        "tasks see it",
        "tasks see the state of their own process; pass what they need as a parameter",
        "processes do not share it; `runtime_env` sets variables for all of them",
        (["by the flow", "by the flow"], ["default", None]),
    ),
    "generators": Difference(
        "a random generator that is a global",
        "tasks draw from it in turn",
        "each process has its own, seeded as the file seeds it; the flow's draws and seeds do not "
        "reach it",
        "processes share no memory; [what travels keeps its state](fan-out.md#code)",
    ),
    "tasks": Difference(
        "how many tasks run at once",
        "as many as are submitted",
        "one for each CPU, unless `remote_options` say otherwise",
        "Ray schedules by CPUs",
    ),
    "waiting": Difference(
        "a task that waits for another in a separate thread (`asyncio.to_thread(future.result)`)",
        "needs no resources",
        "keeps its CPU meanwhile; every wait keeps GPUs and other resources",
        "Ray takes back only the CPU, and only if the main thread of the task waits",
    ),
    "main": Difference(
        "classes of a script that is started with `python flow.py`",
        "the same classes as in the flow",
        "other classes of the same name in each process, except in results",
        "no other process can import `__main__`; the flow's file in a deployment has a name",
    ),
    "arrays": Difference(
        "arrays above 64 kB in parameters and results",
        "can be changed",
        "are read-only: copy before you change them",
        "they are views into Ray's store",
    ),
    "large globals": Difference(
        "globals that take more than 2 ms to pickle, changed between two submits of a task",
        "tasks see the change at once",
        "tasks see the change after twenty times as long",
        "otherwise pickling would be most of the cost of a submit",
    ),
}


PAGE = Path("docs/how-to/migrate-from-prefect-ray.md")
_HEAD = "| | threads | here | why |\n|---|---|---|---|\n"


def written(page: str) -> str:
    """Return the migration page with the table as it has to be."""
    before, _, rest = page.partition(_HEAD)
    _, _, after = rest.partition("\n\n")
    rows = [f"| {d.what} | {d.threads} | {d.here} | {d.why} |" for d in DIFFERENCES.values()]
    return before + _HEAD + "\n".join(rows) + "\n\n" + after


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


VARIABLE = ContextVar("VARIABLE", default="default")


def a_context_variable_of_the_flow(runner: Any) -> Any:
    @task
    def reads() -> Any:
        return [VARIABLE.get(), os.environ.get("SET_BY_THE_FLOW")]

    def body() -> Any:
        token = VARIABLE.set("by the flow")
        os.environ["SET_BY_THE_FLOW"] = "by the flow"
        try:
            return reads.submit().result()
        finally:
            VARIABLE.reset(token)
            del os.environ["SET_BY_THE_FLOW"]

    return _flow(runner, body)


def a_subflow_whose_runner_asks_for_another_ray(runner: Any) -> Any:
    own = runner.duplicate()
    if hasattr(own, "init_kwargs"):
        own.init_kwargs = {**own.init_kwargs, "runtime_env": {"env_vars": {"A": "1"}}}
    said: list[str] = []
    logger = logging.getLogger("prefect.task_runner.ray")
    logger.setLevel(logging.WARNING)
    logger.addFilter(lambda record: said.append(record.getMessage()) or False)

    @task
    def anything() -> None: ...

    @flow(task_runner=own)
    def sub() -> None:
        anything.submit().wait()

    def body() -> Any:
        sub()
        return [word for word in ("runtime_env", "log_to_driver") if any(word in s for s in said)]

    return _flow(runner, body)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
