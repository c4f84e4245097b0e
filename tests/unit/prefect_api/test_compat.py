"""An upgrade of Prefect that takes one of the private names away fails here, by name."""

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import task
from prefect.cache_policies import INPUTS
from prefect.client.schemas.objects import TaskRun
from prefect.context import TaskRunContext
from prefect.events.worker import EventsWorker
from prefect.task_engine import BaseTaskRunEngine, SyncTaskRunEngine
from prefect.workers.base import BaseWorker

from prefect_ray_worker.prefect_api import compat
from prefect_ray_worker.prefect_api.compat.tasks import skip_unread_cache_keys

FOLDER = Path(compat.__file__).parent
IMPORTED = [
    (node.module, alias.name)
    for path in FOLDER.glob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prefect.")
    for alias in node.names
]


@pytest.mark.parametrize(("module", "name"), sorted(set(IMPORTED)))
def test_what_is_imported_is_there(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(BaseWorker, "_exit_stack"), (BaseWorker, "_logger"), (EventsWorker, "_queue")],
)
def test_attributes_are_made(owner: type, name: str) -> None:
    sources = "".join(inspect.getsource(c) for c in owner.__mro__ if c.__module__[:7] == "prefect")
    assert f"self.{name}" in sources


def test_only_keys_that_are_read_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set back afterwards.
    compute = BaseTaskRunEngine.compute_transaction_key
    monkeypatch.setattr(BaseTaskRunEngine, "compute_transaction_key", compute)
    skip_unread_cache_keys()

    @task
    def plain(x: int) -> int:
        return x

    by_inputs = plain.with_options(cache_policy=INPUTS)

    def has_key(of: Any, *, persists: bool) -> bool:
        context = TaskRunContext.model_construct(
            task=of, task_run=TaskRun.model_construct(id=uuid4()), persist_result=persists
        )
        engine = SyncTaskRunEngine(task=of, parameters={"x": 1})
        with context:
            return engine.compute_transaction_key() is not None

    assert not has_key(plain, persists=False)
    assert has_key(plain, persists=True)
    assert has_key(by_inputs, persists=False)
