"""What tasks, and functions of Ray's, see of the task around them."""

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

from prefect import task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from prefect.context import TaskRunContext
from prefect.results import ResultStore
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_ray_worker.task_runner.context import ContextPickler, with_run_context
from prefect_ray_worker.task_runner.modules import OwnModules


@task
def holds(value: Any) -> None: ...


def around(run_id: UUID, **parameters: Any) -> TaskRunContext:
    """Return the context of a task with these parameters."""
    run = TaskRun(id=uuid4(), task_key="holds", dynamic_key="0")
    run.id = run_id
    return TaskRunContext(
        task=holds,
        task_run=run,
        parameters=parameters,
        result_store=ResultStore(),
        client=get_client(sync_client=True),
    )


def test_a_function_of_rays_gets_no_parameters_of_the_task_around_it() -> None:
    """A large one went with each function, and one that cannot be pickled was an error."""
    address = {PREFECT_API_URL: "http://127.0.0.1:9/api"}
    with temporary_settings(address), around(uuid4(), value=threading.Lock()):
        assert callable(with_run_context(len))


class Interrupting(UUID):
    """Does something else while it is looked up, as another thread could."""

    then: Callable[[], object] = int

    def __hash__(self) -> int:
        self.then()
        return super().__hash__()


def test_submits_of_several_tasks_at_once_find_the_task_around_them() -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        one, other = around(Interrupting(int=1)), around(uuid4())
        pickler = ContextPickler([], OwnModules())
        packed = pickler._parent(one)
        Interrupting.then = lambda _: pickler._parent(other)
        assert pickler._parent(one) is packed
