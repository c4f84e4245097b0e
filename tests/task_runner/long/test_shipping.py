"""What a task uses, by the way its flow is loaded: on a node that has none of the flow's files."""

import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from tests.prefect_server import PrefectServer
from tests.real_ray import RealRay
from tests.task_runner.nodes import environment, second_node

pytestmark = [pytest.mark.ray, pytest.mark.extra]

PROJECT = Path(__file__).parents[1] / "project"

# As Prefect's engine loads a deployment's flow; `taken` has it do so under a name that no import
# finds.
LOADED = """
import json, os, sys, types
sys.path.insert(0, os.getcwd())
if "TAKEN" in os.environ:
    sys.modules["entry"] = types.ModuleType("entry")
os.environ["PREFECT__FLOW_ENTRYPOINT"] = "flows/entry.py:everything"
from prefect.flows import load_flow_from_entrypoint
flow = load_flow_from_entrypoint("flows/entry.py:everything", use_placeholder_flow=False)
print("FOUND", json.dumps([flow.fn.__module__, flow("far")]))
"""
JOB_PACKAGE = "_ray_pkg_00000000000000000000000000000017.zip"
IN_A_JOB = {
    "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(
        {"runtime_env": {"working_dir": f"gcs://{JOB_PACKAGE}", "env_vars": {"A": "1"}}}
    )
}
WAYS: dict[str, tuple[list[str], dict[str, str], str]] = {
    "a script": (["flows/entry.py"], {}, "__main__"),
    "under its stem": (["-c", LOADED], {}, "entry"),
    "under the loader's name": (["-c", LOADED], {"TAKEN": "1"}, "__prefect_loader_"),
    "in a job with another working_dir": (["-c", LOADED], {"TAKEN": "1", **IN_A_JOB}, "__pref"),
    "with nothing shipped": (["-c", LOADED], {"TAKEN": "1", "SHIP_NOTHING": "1"}, "__pref"),
}
USED = {
    "trivial": "ok",
    "uses_local": "7",
    "uses_local_class": "(True, 2)",
    "a class of the script comes back as itself": "True",
    "uses_sibling": "sibling",
    "uses_package": "package",
    "imports_late": "sibling",
    "imports_from_the_path": "path",
    "reads_data": "data",
    "submits": "7",
}
# A lock of the script's works where the script can be loaded, and is named where it cannot.
BY_VALUE = ("a script", "with nothing shipped")
# Where nothing is shipped, this is all that a node needs files for; and it is said.
NEEDS_FILES = {
    "uses_sibling": "No module named 'sibling'. The module is not on that node",
    "uses_package": "No module named 'lib'. The module is not on that node",
    "imports_late": "ModuleNotFoundError: No module named 'sibling'",
    "imports_from_the_path": "ModuleNotFoundError: No module named 'on_the_path'",
    "reads_data": "FileNotFoundError",
}

Found = dict[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flow's folder, as it is on the driver's node alone."""
    folder = tmp_path_factory.mktemp("shipping") / "project"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def far_node(folder: Path, cluster: RealRay) -> Iterator[RealRay]:
    with io.BytesIO() as archive:
        with zipfile.ZipFile(archive, "w") as package:
            package.writestr("of_the_job.py", "def hello(): return 'job'")
        url = f"{cluster.address}/api/packages/gcs/{JOB_PACKAGE}"
        httpx.put(url, content=archive.getvalue(), trust_env=False).raise_for_status()
    with second_node(cluster, "far", without=folder):
        yield cluster


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Found]:
    """What the flow has found, by the way it was loaded: each way is gone once."""
    return {}


@pytest.fixture(params=WAYS)
def found(
    request: pytest.FixtureRequest,
    outcomes: dict[str, Found],
    folder: Path,
    far_node: RealRay,
    prefect_api: PrefectServer,
) -> Found:
    way: str = request.param
    if way not in outcomes:
        arguments, env, module = WAYS[way]
        home = folder.parent / "home"
        common = environment(prefect_api.api_url, home, far_node)
        # A folder of modules that imports of the driver find, below the flow's.
        common["PYTHONPATH"] = f"{folder / 'src'}:{common['PYTHONPATH']}"
        outcomes[way] = _go(arguments, folder, {**common, **env}, module)
    return outcomes[way]


def _go(arguments: list[str], folder: Path, env: Mapping[str, str], module: str) -> Found:
    if arguments[0] != "-c":
        env = {**env, "PYTHONPATH": f"{folder}:{env['PYTHONPATH']}"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=150)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-1500:] + done.stderr[-3000:]
    name, found = json.loads(lines[0].removeprefix("FOUND "))
    assert name.startswith(module)
    return found


@pytest.mark.parametrize("used", USED)
def test_what_a_task_uses_is_on_every_node(
    found: Found, used: str, request: pytest.FixtureRequest
) -> None:
    way = request.node.callspec.params["found"]
    if way == "with nothing shipped" and used in NEEDS_FILES:
        assert NEEDS_FILES[used] in found[used]
    else:
        assert found[used].startswith(USED[used])


def test_what_cannot_be_pickled_works_or_is_named(
    found: Found, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["found"] not in BY_VALUE:
        assert found["uses_lock"] == "False"
        return
    assert "Unpicklable: Task 'uses_lock' cannot be sent to the cluster: " in found["uses_lock"]
    assert "function 'uses_lock'" in found["uses_lock"]
    assert "uses the global 'LOCK', a lock" in found["uses_lock"]


def test_the_jobs_own_working_dir_stays_importable(
    found: Found, request: pytest.FixtureRequest
) -> None:
    in_job = "job" in request.node.callspec.params["found"]
    said = "job" if in_job else "ModuleNotFoundError: No module named 'of_the_job'"
    assert found["imports_from_the_job"] == said
