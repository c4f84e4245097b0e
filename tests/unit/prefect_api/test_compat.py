"""An upgrade of Prefect that takes one of the private names away fails here, by name."""

import ast
import importlib
import inspect

import pytest
from prefect.events.worker import EventsWorker
from prefect.workers.base import BaseWorker

from prefect_ray_worker.prefect_api import compat

IMPORTED = [
    (node.module, alias.name)
    for node in ast.walk(ast.parse(inspect.getsource(compat)))
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
