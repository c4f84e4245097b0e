"""Each behaviour under `ThreadPoolTaskRunner`, and under `RayTaskRunner` on one CPU and on two.

The behaviours are in `as_threads/`. They run in processes of their own: each has a Ray of its own,
and one that hangs is ended.
"""

import ast
import functools
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.prefect_server import PrefectServer
from tests.real_ray import TERMS
from tests.task_runner.as_threads.differences import DIFFERENCES, table
from tests.task_runner.as_threads.show import FOLDER, RESULT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SECONDS = 100
HANGS = "hangs"


def behaviours(script: str) -> list[str]:
    tree = ast.parse((FOLDER / f"{script}.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [f.name for f in functions if [a.arg for a in f.args.args] == ["runner"]]


SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if behaviours(p.stem))
ALL = [(script, name) for script in SCRIPTS for name in behaviours(script)]


@pytest.fixture(scope="session", autouse=True)
def prefect_settings() -> None:
    """Leave the settings of this process alone: other suites share it in `make test`."""


@pytest.fixture(scope="session")
def environment(prefect_api: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PREFECT_"))},
        **TERMS,
        "PREFECT_API_URL": prefect_api.api_url,
        "PREFECT_HOME": str(tmp_path_factory.mktemp("as-threads")),
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


@pytest.fixture(scope="session")
def results(environment: dict[str, str]) -> Any:
    """A function that returns what all behaviours of a script come to."""

    @functools.cache
    def of(script: str, cpus: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        names = behaviours(script)
        while left := [name for name in names if name not in found]:
            found |= show(script, cpus, left, environment)
        return found

    return of


def show(script: str, cpus: str, names: list[str], env: dict[str, str]) -> dict[str, Any]:
    """Run behaviours in one process, until one hangs."""
    module = "tests.task_runner.as_threads.show"
    command = [sys.executable, "-m", module, script, cpus, *names]
    found: dict[str, Any] = {}
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(RESULT):
                    lines.put(line.removeprefix(RESULT))
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        try:
            while len(found) < len(names):
                line = lines.get(timeout=SECONDS)
                if line is None:
                    found[names[len(found)]] = f"ended with {process.wait()}"
                    break
                name, result = json.loads(line)
                found[name] = result
        except queue.Empty:
            found[names[len(found)]] = HANGS
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
    return found


@pytest.mark.parametrize("cpus", ["1", "2"])
@pytest.mark.parametrize(("script", "name"), ALL, ids=[f"{s}-{n}" for s, n in ALL])
def test_as_threads(results: Any, script: str, name: str, cpus: str) -> None:
    expected = results(script, "threads")[name]
    assert expected != HANGS
    difference = DIFFERENCES.get(name)
    if difference is None:
        assert results(script, cpus)[name] == expected
    else:
        assert (expected, results(script, cpus)[name]) == difference.shown


def test_the_migration_page_has_the_table_of_differences() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "migrate-from-prefect-ray.md"
    assert table() in page.read_text()
