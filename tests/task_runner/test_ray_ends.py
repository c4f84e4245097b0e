"""The Ray of a flow that is no job: how it ends, and one that has ended before."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real_ray import TERMS

SECONDS = 60
DROPS = """
import gc, threading, time
import ray
from prefect_ray_worker.task_runner.session import await_shutdown, connect

session = connect("local", {"num_cpus": 1, "include_dashboard": False}, ship_code=False)
refs = [ray.put(i) for i in range(3_000)]

def of_ours():
    await_shutdown()  # its tasks are lost
    drop(refs.pop)

def of_a_library():
    drop(make_garbage)  # as a traceback does whose frames had references

def make_garbage():
    cycle = [refs.pop()]
    cycle.append(cycle)
    [[] for _ in range(2_000)]  # more than the collector waits for

def drop(one):
    while len(refs) > 1:  # there are two of us
        one()
        time.sleep(0.0005)

def when_disconnected(then):
    while ray.is_initialized():
        time.sleep(0)
    then()

threads = [threading.Thread(target=when_disconnected, args=[w]) for w in (of_ours, of_a_library)]
for thread in threads:
    thread.start()
session.leave()
for thread in threads:
    thread.join()
assert gc.isenabled()
"""
CONNECTS = """
from prefect_ray_worker.task_runner.session import connect

session = connect(None, {"num_cpus": 1, "include_dashboard": False}, ship_code=False)
session.leave()
"""


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    # Ray's sockets are below it, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="prwt-", dir="/tmp") as folder:
        yield Path(folder)


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PREFECT_"))}
    env |= {**TERMS, "PREFECT_HOME": str(folder), "RAY_TMPDIR": str(folder)}
    command = [sys.executable, "-c", script + "print('went on')"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS)


def test_threads_that_drop_references_while_ray_shuts_down_end_nothing(ray_folder: Path) -> None:
    done = run(DROPS, ray_folder)
    assert done.stdout.splitlines()[-1:] == ["went on"], done.stderr[-2_000:]


def note_a_ray(folder: Path, server: socket.socket) -> None:
    """Note its address as `ray start` does."""
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.extra
def test_a_ray_that_was_killed_is_not_waited_for(ray_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        note_a_ray(ray_folder, server)
    done = run(CONNECTS, ray_folder)
    assert done.stdout.splitlines()[-1:] == ["went on"], done.stderr[-2_000:]


def test_a_ray_that_runs_is_joined_and_takes_no_num_cpus(ray_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        note_a_ray(ray_folder, server)
        done = run(CONNECTS, ray_folder)
    assert "init_kwargs: RayTaskRunner joins the Ray that runs on this machine" in done.stderr
    assert "RayTaskRunner(address='local')" in done.stderr
