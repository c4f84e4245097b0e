"""Which Ray a runner uses: joined, started, or found; and how it leaves it."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.prefect_server import PrefectServer
from tests.real_ray import RealRay, real_ray
from tests.task_runner.nodes import environment

pytestmark = [pytest.mark.ray, pytest.mark.extra]

FLOW = """
import json, os, signal
from prefect import flow, task, get_run_logger
from prefect_ray_worker import RayTaskRunner
import ray

@task
def double(x):
    get_run_logger().info("doubling")
    return 2 * x

@task
def breaks():
    os._exit(1)

def run(runner, number):
    @flow(task_runner=runner)
    def fans_out():
        chain = double.submit(double.submit(number))
        crashed = breaks.submit(return_state=True).name
        nodes = sum(node["Alive"] for node in ray.nodes())
        return [*double.map([1, 2]).result(), chain.result(), crashed, nodes]
    return fans_out()
"""


def python(script: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    file = cwd / "connects.py"
    file.write_text(FLOW + script)
    return subprocess.run(
        [sys.executable, file], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )


def printed(done: "subprocess.CompletedProcess[str]") -> Any:
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stdout[-1000:] + done.stderr[-3000:]
    return json.loads(lines[-1])


@pytest.fixture
def env(prefect_api: PrefectServer, cluster: RealRay, tmp_path: Path) -> dict[str, str]:
    return environment(prefect_api.api_url, tmp_path / "home", cluster)


def test_a_ray_of_its_own_ends_with_the_flow(env: dict[str, str], tmp_path: Path) -> None:
    del env["RAY_ADDRESS"]
    # A folder of its own, where Ray finds no other that runs on this machine; and a short one.
    with tempfile.TemporaryDirectory(prefix="prwt-", dir="/tmp") as temp_dir:
        done = python(OWN, {**env, "TEMP_DIR": temp_dir}, tmp_path)
        assert printed(done) == {
            "1": [2, 4, 4, "Crashed", 1],
            "2": [2, 4, 8, "Crashed", 1],
            "left": False,
            "handler": True,
        }
        mine = [p for p in psutil.process_iter() if environ(p).get("TEMP_DIR") == temp_dir]
        psutil.wait_procs(mine, timeout=10)
        assert not [p for p in mine if p.is_running()]


OWN = """
signal.signal(signal.SIGTERM, mine := lambda *_: None)
found = {}
init_kwargs = {"num_cpus": 2, "include_dashboard": False, "_temp_dir": os.environ["TEMP_DIR"]}
for number in (1, 2):
    runner = RayTaskRunner(init_kwargs=init_kwargs)
    found[number] = run(runner, number)
    found["left"] = ray.is_initialized()
found["handler"] = signal.getsignal(signal.SIGTERM) is mine
print(json.dumps(found))
"""


def environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


@pytest.mark.parametrize("address", ["None", "'auto'", "os.environ['RAY_ADDRESS']"])
def test_a_cluster_that_is_joined_stays(
    env: dict[str, str], cluster: RealRay, tmp_path: Path, address: str
) -> None:
    script = f'print(json.dumps({{"found": run(RayTaskRunner({address}), 1)}}))'
    assert printed(python(script, env, tmp_path))["found"] == [2, 4, 4, "Crashed", 1]
    assert psutil.pid_exists(cluster.pid)


def test_a_ray_that_is_initialized_stays_so(env: dict[str, str], tmp_path: Path) -> None:
    script = """
ray.init()
found = run(RayTaskRunner("auto", {"num_cpus": 17}), 1)
print(json.dumps({"found": found, "there": ray.is_initialized()}))
"""
    expected = {"found": [2, 4, 4, "Crashed", 1], "there": True}
    assert printed(python(script, env, tmp_path)) == expected


def test_auto_without_a_cluster_says_what_to_do(env: dict[str, str], tmp_path: Path) -> None:
    del env["RAY_ADDRESS"]
    # Ray looks for others on this machine; here are some of other tests.
    script = """
from ray._private import services
def none(): return set()
none.cache_clear = lambda: None
services.find_gcs_addresses = none
services.find_bootstrap_address = lambda *_: None
try:
    run(RayTaskRunner("auto"), 1)
except Exception as exc:
    print(json.dumps({"type": type(exc).__name__, "said": str(exc)}))
"""
    found = printed(python(script, env, tmp_path))
    assert found["type"] == "NoRayCluster"
    assert "a work pool of type 'ray'" in found["said"]
    assert "leave the address of RayTaskRunner out" in found["said"]


def test_ray_client_works_and_warns_once(env: dict[str, str], tmp_path: Path) -> None:
    del env["RAY_ADDRESS"]
    with real_ray(num_cpus=4, parts="client") as ray:
        script = f"""
found = run(RayTaskRunner("ray://{ray.client_address}"), 1)
print(json.dumps({{"found": found, "there": ray.is_initialized()}}))
"""
        done = python(script, env, tmp_path)
    assert printed(done) == {"found": [2, 4, 4, "Crashed", 1], "there": False}
    said = done.stdout + done.stderr
    assert said.count("give its deployment a work pool of type 'ray'") == 1
