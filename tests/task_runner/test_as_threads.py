"""Each behaviour under `ThreadPoolTaskRunner`, and under `RayTaskRunner` on one CPU and on two.

The behaviours are in `as_threads/`. Those of one place run in one process with one Ray, which is
ended if a behaviour hangs, while another process runs them on threads. `far` is a cluster of two
nodes: all tasks run on the second, which has none of the flow's files.
"""

import ast
import functools
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.mounts import NO_MOUNTS, can_hide_files
from tests.prefect_server import PrefectServer
from tests.real_ray import KEEPS_PROCESSES, TERMS, RealRay, real_ray
from tests.task_runner.as_threads.differences import DIFFERENCES, PAGE, written
from tests.task_runner.as_threads.show import FOLDER, RESULT
from tests.task_runner.nodes import second_node
from tests.waiting import patience

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SECONDS = 100
HANGS = "hangs"
THREADS = "threads"


def names_in(script: str) -> list[str]:
    tree = ast.parse((FOLDER / f"{script}.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [f.name for f in functions if [a.arg for a in f.args.args] == ["runner"]]


SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if names_in(p.stem))
ALL = [(script, name) for script in SCRIPTS for name in names_in(script)]
# The flow's file of most; the others are modules beside it. It imports what `imports` imports late.
_ENTRY, _ALONE = "values", "imports"
# One CPU is the hardest for tasks that wait for tasks, and the second node for what depends on its
# files. `make test-extra` runs all of them everywhere.
_MATTERS = {"1": [s for s in SCRIPTS if s != _ALONE], "2": [], "far": [_ALONE]}
CASES = [
    pytest.param(
        *(script, name, where),
        id=f"{script}-{name}-{where}",
        marks=[] if script in scripts else [pytest.mark.extra],
    )
    for where, scripts in _MATTERS.items()
    for script, name in ALL
]


@pytest.fixture(scope="module", autouse=True)
def prefect_settings() -> None:
    """Leave the settings of this process alone: other suites share it in `make test`."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the behaviours in a folder below: only the driver's node has it."""
    project = tmp_path_factory.mktemp("as-threads") / "project"
    shutil.copytree(FOLDER, project / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    return project


@pytest.fixture(scope="module")
def far(project: Path) -> Iterator[RealRay]:
    """A cluster whose only CPUs are on a node that does not have the flow's files."""
    if not can_hide_files():
        pytest.skip(NO_MOUNTS)
    with (
        real_ray(num_cpus=0) as ray,
        second_node(ray, "far", without=project, env=KEEPS_PROCESSES),
    ):
        yield ray


@pytest.fixture(scope="module")
def environment(shared_prefect_api: PrefectServer, project: Path) -> dict[str, str]:
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PREFECT_"))},
        **TERMS,
        "PREFECT_API_URL": shared_prefect_api.api_url,
        "PREFECT_HOME": str(project.parent / "home"),
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        **KEEPS_PROCESSES,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, environment: dict[str, str], project: Path
) -> Iterator[Any]:
    """A function that returns a behaviour's results on threads, and in a place.

    The first call runs all selected behaviours of that place.
    """
    selected: list[tuple[str, str, str]] = [
        tuple(item.callspec.params[key] for key in ("script", "name", "where"))
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == test_as_threads.__name__
    ]
    selected.sort(key=lambda case: case[0] != _ENTRY)

    @functools.cache
    def of(where: str, is_alone: bool) -> Future[dict[str, Any]]:
        env = {**environment, "PREFECT_HOME": str(project.parent / f"home-{where}")}
        if where == "far":
            env = {**env, "RAY_ADDRESS": request.getfixturevalue("far").gcs_address}
        wanted = [
            behaviour(script, name)
            for script, name, place in selected
            if where in (THREADS, place) and is_alone == (script == _ALONE)
        ]
        return runs.submit(show_all, project, where, list(dict.fromkeys(wanted)), env)

    def of_both(script: str, name: str, where: str) -> list[Any]:
        shown = [of(each, script == _ALONE) for each in (THREADS, where)]
        return [each.result()[behaviour(script, name)] for each in shown]

    with ThreadPoolExecutor(2) as runs:
        yield of_both


def behaviour(script: str, name: str) -> str:
    return f"flows/{script}.py:{name}"


def show_all(
    project: Path, where: str, behaviours: list[str], env: dict[str, str]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while left := [each for each in behaviours if each not in found]:
        found |= show(project, where, left, env)
    return found


def show(project: Path, where: str, behaviours: list[str], env: dict[str, str]) -> dict[str, Any]:
    """Run behaviours in one process, until one hangs."""
    module = "tests.task_runner.as_threads.show"
    command = [sys.executable, "-m", module, where, *behaviours]
    found: dict[str, Any] = {}
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    with subprocess.Popen(
        command, env=env, cwd=project, stdout=subprocess.PIPE, text=True
    ) as process:

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(RESULT):
                    lines.put(line.removeprefix(RESULT))
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        try:
            while len(found) < len(behaviours):
                line = lines.get(timeout=SECONDS * patience())
                if line is None:
                    found[behaviours[len(found)]] = f"ended with {process.wait()}"
                    break
                shown, result = json.loads(line)
                found[shown] = result
        except queue.Empty:
            found[behaviours[len(found)]] = HANGS
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
    return found


@pytest.mark.parametrize(("script", "name", "where"), CASES)
def test_as_threads(results: Any, script: str, name: str, where: str) -> None:
    expected, found = results(script, name, where)
    assert expected != HANGS
    difference = DIFFERENCES.get(name)
    if difference is None:
        assert found == expected
    else:
        assert (expected, found) == difference.shown


def test_a_script_that_connects_to_ray_and_ends_it_by_itself(
    environment: dict[str, str], project: Path, far: RealRay
) -> None:
    env = {**environment, "RAY_ADDRESS": far.gcs_address, "PREFECT_LOGGING_LEVEL": "WARNING"}
    command = [sys.executable, "flows/by_itself.py"]
    done = subprocess.run(
        command, cwd=project, env=env, capture_output=True, text=True, timeout=2 * SECONDS
    )
    said = done.stdout + done.stderr
    found = next((s for s in done.stdout.splitlines() if s.startswith("FOUND ")), None)
    assert found is not None, said[-3000:]
    assert json.loads(found.removeprefix("FOUND ")) == {
        "cached": [True, [2]],
        "draws what the flow draws": False,
        "beside": "No module named 'beside'",
        "not ended soon": 0,
        "states": ["Crashed"],
        "in the API": ["Crashed", "Crashed"],
        "submit": "RayShutDown",
    }
    warned = " ".join(said.split())  # the console wraps its lines
    assert "the flow's folder is not shipped to the 2 nodes" in warned
    assert "so its own num_cpus is ignored" in warned


def test_the_migration_page_has_the_table_of_differences() -> None:
    """`make docs` writes it: `python -m tests.task_runner.as_threads.differences`."""
    page = (Path(__file__).parents[2] / PAGE).read_text()
    assert written(page) == page
    assert set(DIFFERENCES) >= {name for script, name in ALL if script == "differences"}
