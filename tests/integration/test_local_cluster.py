"""The embedded Ray, for real: who starts it, who finds it, who stops it, and what is left."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest

from prefect_ray_worker.clusters.local import cluster as cluster_module
from prefect_ray_worker.clusters.local import processes
from prefect_ray_worker.clusters.local.cluster import LocalCluster, LocalClusterInfo
from prefect_ray_worker.clusters.local.launch import Launch, Ports, TempDirectory
from prefect_ray_worker.clusters.local.processes import MARKER
from prefect_ray_worker.clusters.local.state import ClusterRecord, StateDirectory
from prefect_ray_worker.errors import LocalClusterError, NotAuthorized
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobDetails, JobSubmitRequest
from prefect_ray_worker.ray_api.tokens import TokenSource
from tests.waiting import patience, wait_until

pytestmark = pytest.mark.ray

# A worker process: starts or finds the cluster, then lets go of it when it reads a line.
WORKER = """
import asyncio, json, sys
from pathlib import Path
from prefect_ray_worker.clusters.local.cluster import LocalCluster

async def main():
    cluster = LocalCluster(Path(sys.argv[1]))
    info = await cluster.ensure()
    assert "ray" not in sys.modules
    print(json.dumps([info.started, info.pid, info.address]), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(json.dumps(await cluster.release(jobs_running=False)), flush=True)

asyncio.run(main())
"""


def family(directory: Path) -> list[psutil.Process]:
    """Every process of the cluster of this state directory."""
    record = StateDirectory(directory).read_record()
    marker = str(TempDirectory.for_state(directory).path)
    found = processes._family(record.leader if record else None, marker)
    return [process for process in found if processes._is_alive(process)]


def alive(known: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in known if processes._is_alive(process)]


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def listened(process: psutil.Process) -> list[Any]:
    # Ray's idle workers come and go while we look.
    with suppress(psutil.NoSuchProcess):
        return [
            socket.laddr
            for socket in process.net_connections("inet")
            if socket.status == psutil.CONN_LISTEN
        ]
    return []


def assert_nothing_left(directory: Path, known: list[psutil.Process]) -> None:
    assert alive(known) == []
    assert family(directory) == []
    assert not TempDirectory.for_state(directory).path.exists()
    assert not (directory / "cluster.json").exists()
    assert not (directory / "auth_token").exists()


def stop_by_force(directory: Path) -> None:
    """Whatever a failed test left behind."""
    record = StateDirectory(directory).read_record()
    temp = TempDirectory.for_state(directory)
    processes.stop_all(record.leader if record else None, str(temp.path))
    temp.remove()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "ray-worker"
    yield path
    stop_by_force(path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, LocalClusterInfo]]:
    """A cluster that was started under an environment which would lead a careless one astray."""
    directory = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/usr/bin:/bin")
        patch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        patch.setenv("RAY_TMPDIR", "/no/such/directory")
        patch.setenv("PREFECT_API_URL", "http://prefect.example/api")
        cluster = LocalCluster(directory)
        info = asyncio.run(cluster.ensure())
    assert info.started
    yield directory, info
    try:
        assert asyncio.run(cluster.release(jobs_running=False))
    finally:
        stop_by_force(directory)


def client_of(info: LocalClusterInfo) -> JobsClient:
    return JobsClient(Connection(info.address, TokenSource(path=info.token_path)))


@asynccontextmanager
async def worker(directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker process in a process group of its own, as a terminal gives it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        WORKER,
        str(directory),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def answer_of(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    return json.loads(await asyncio.wait_for(process.stdout.readline(), 90))


async def told_to_release(process: asyncio.subprocess.Process) -> bool:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    await process.stdin.drain()
    return await answer_of(process)


async def run_job(info: LocalClusterInfo, name: str, entrypoint: str) -> tuple[JobDetails, str]:
    request = JobSubmitRequest(
        entrypoint=entrypoint, submission_id=name, runtime_env={}, metadata={}
    )
    async with client_of(info) as client:
        await client.submit(request)

        async def ended() -> JobDetails | None:
            details = await client.get(name)
            return details if details.is_terminal else None

        details = await wait_until(ended, timeout=60, description=f"job {name} ends")
    return details, (info.session_path / "logs" / f"job-driver-{name}.log").read_text()


async def test_a_second_object_finds_the_same_cluster(shared):
    directory, info = shared
    second = LocalCluster(directory)
    began = time.monotonic()
    found = await second.ensure()
    assert time.monotonic() - began < 2 * patience()
    assert not found.started
    assert (found.pid, found.address) == (info.pid, info.address)
    assert await second.find() == found
    assert await second.release(jobs_running=False) is False
    assert await second.release(jobs_running=False) is False


async def test_another_process_finds_it_and_leaves_it_to_us(shared):
    directory, info = shared
    async with worker(directory) as process:
        assert await answer_of(process) == [False, info.pid, info.address]
        assert await told_to_release(process) is False


async def test_the_jobs_api_wants_the_token(shared):
    _, info = shared
    async with httpx.AsyncClient(base_url=info.address, trust_env=False) as stranger:
        for method, path in [
            ("GET", "/api/version"),
            ("GET", "/api/jobs/"),
            ("POST", "/api/jobs/"),
            ("GET", "/api/v0/nodes"),
        ]:
            assert (await stranger.request(method, path)).status_code == 401, path
    async with JobsClient(Connection(info.address, TokenSource(literal="f" * 64))) as client:
        with pytest.raises(NotAuthorized):
            await client.list()
    async with client_of(info) as client:
        assert isinstance(await client.list(), list)


async def test_a_job_runs_with_the_workers_python_and_its_prefect_settings(shared):
    _, info = shared
    details, log = await run_job(
        info,
        "inside",
        'which prefect; which python; echo "$PREFECT_API_URL"; python -c "import ray; ray.init();'
        "print('answer', ray.get(ray.remote(lambda: 41 + 1).remote()))\"",
    )
    assert details.status == "SUCCEEDED", log
    venv = Path(sys.executable).parent
    lines = log.splitlines()
    assert str(venv / "prefect") in lines
    assert str(venv / "python") in lines
    assert "http://prefect.example/api" in lines
    assert "answer 42" in lines


def test_it_listens_on_loopback_only_and_off_the_ports_of_other_rays(shared):
    directory, info = shared
    listening = [address for process in family(directory) for address in listened(process)]
    assert len(listening) >= 8
    assert {address.ip for address in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert not {address.port for address in listening} & {6379, 8265, 10001, 52365, 44217, 44227}
    assert info.session_path.is_dir()
    assert info.session_path.is_relative_to(TempDirectory.for_state(directory).path)
    assert Path("/tmp/ray/session_latest").resolve() != info.session_path


async def test_two_that_start_at_once_start_one_which_survives_their_deaths(directory, shared):
    async with worker(directory) as first, worker(directory) as second:
        answers = await asyncio.gather(answer_of(first), answer_of(second))
        assert sorted(started for started, _, _ in answers) == [False, True]
        assert answers[0][1:] == answers[1][1:]
        for process in (first, second):
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    cluster = LocalCluster(directory)
    info = await cluster.ensure()
    assert [False, info.pid, info.address] == [info.started, *answers[0][1:]]

    # Jobs that run keep it alive without any worker.
    assert await cluster.release(jobs_running=True) is False
    assert await LocalCluster(directory).find() == info

    async with worker(directory) as third:
        assert await answer_of(third) == [False, info.pid, info.address]
        await cluster.ensure()
        assert await cluster.release(jobs_running=False) is False
        known = family(directory)
        began = time.monotonic()
        assert await told_to_release(third) is True
        assert time.monotonic() - began < 10 * patience()
    assert_nothing_left(directory, known)
    assert await cluster.find() is None

    # The cluster of another directory has run beside it all the time.
    assert shared[1].address != info.address
    async with client_of(shared[1]) as client:
        assert await client.version()


@pytest.mark.extra
async def test_a_silent_or_dead_cluster_is_replaced(directory, monkeypatch):
    # As good as a `ray start` whose dashboard hangs: it lives, and nobody answers.
    state = StateDirectory(directory)
    state.prepare()
    temp = TempDirectory.for_state(directory)
    temp.create()
    starting = Launch(
        ["sleep", "300"], {MARKER: str(temp.path)}, cwd=temp.work, log_path=state.log_path
    )
    silent = starting.start()
    port = Ports.find().dashboard
    state.write_record(
        ClusterRecord(
            pid=silent.pid,
            birth=silent.birth,
            address=f"http://127.0.0.1:{port}",
            agent_port=port,
            token_path=str(state.token_path),
            temp_dir=str(temp.path),
        )
    )
    monkeypatch.setattr(cluster_module, "_ANSWER_SECONDS", 1.0)
    cluster = LocalCluster(directory)
    first = await cluster.ensure()
    assert first.started
    assert not silent.is_alive()

    known = family(directory)
    leader = psutil.Process(first.pid)
    leader.kill()
    await wait_until(lambda: not alive([leader]), description="`ray start` is dead")
    second = await cluster.ensure()
    assert second.started
    assert second.pid != first.pid
    assert alive(known) == []

    known = family(directory)
    assert await cluster.release(jobs_running=False) is True
    assert_nothing_left(directory, known)


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_a_cancelled_start_leaves_nothing(directory, how):
    temp = TempDirectory.for_state(directory)
    cluster = LocalCluster(directory)
    known: list[psutil.Process] = []

    def under_way() -> bool:
        known[:] = family(directory)
        # At once for one, for the other when daemons of Ray have started as well.
        names = [name_of(process) for process in known]
        return bool(names) if how == "task" else "gcs_server" in names

    if how == "task":
        task = asyncio.create_task(cluster.ensure())
        await wait_until(under_way, timeout=30, description="Ray starts")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        async with anyio.create_task_group() as group:
            group.start_soon(cluster.ensure)
            await wait_until(under_way, timeout=30, description="a daemon starts")
            group.cancel_scope.cancel()
    assert known
    assert_nothing_left(directory, known)
    assert not temp.path.exists()
    assert not StateDirectory(directory).is_in_use()
    assert await cluster.release(jobs_running=False) is False


async def test_without_ray_it_says_what_to_do(directory):
    code = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class WithoutRay(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        return None if name == 'ray' else super().find_spec(name, path, target)\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutRay\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code + WORKER, str(directory)), stderr=asyncio.subprocess.PIPE
    )
    _, output = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    message = output.decode().splitlines()[-1]
    assert "LocalClusterError: No cluster address is configured, and Ray is not" in message
    assert 'pip install "ray[default]"' in message
    assert "PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS" in message


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("aiohttp_cors", ["without its dashboard", 'pip install "ray[default]"']),
        ("click", ["did not start", "not to be had", "set the address of a running cluster"]),
    ],
)
async def test_a_start_that_fails_says_why_and_leaves_nothing(
    directory, tmp_path, monkeypatch, module, words
):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / f"{module}.py").write_text("raise ImportError('not to be had')")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    with pytest.raises(LocalClusterError) as caught:
        await LocalCluster(directory).ensure()
    for word in words:
        assert word in str(caught.value)
    assert_nothing_left(directory, [])
