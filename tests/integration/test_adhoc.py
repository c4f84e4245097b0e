"""Flows without a deployment, called from a process whose files no node sees."""

import re
import signal
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.bundles.carriers import HEADER_KEY
from prefect_ray_worker.bundles.header import BundleHeader
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.shared.ids import LOG_END_LABEL
from tests.integration.caller_kit import CALLER_SECONDS, Laptop, online, set_address
from tests.integration.harness import Pool

pytestmark = pytest.mark.ray

SECRETS = {"PREFECT_API_KEY": "pnu_secret-of-the-laptop", "SOME_TOKEN": "token-of-the-laptop"}


@pytest.fixture
async def laptop(pool: Pool, tmp_path: Path) -> Laptop:
    await set_address(pool)
    return Laptop(pool, tmp_path / "laptop")


async def test_value_modules_files_and_logs_come_and_no_secret_goes(laptop: Laptop) -> None:
    laptop.env = SECRETS
    async with online(laptop.pool):
        said = await laptop.call("called")
        workers = await laptop.pool.client.read_workers_for_work_pool(laptop.pool.name)
        assert len(workers) == 1, "a caller is no worker"
    assert "value True 40" in said
    assert "with rate: 7" in said, "a print of the flow"
    assert "training in /tmp/prefect-flow-run-" in said
    of_loop = [f"line {n} of a {kind}" for n in range(50) for kind in ("print", "write")]
    for line in (*of_loop, "line of a child", "line of the hook", "line at the exit"):
        found = re.findall(rf"{line}$", said, re.MULTILINE)
        assert len(found) == 1, f"{line}: {len(found)} times\n{said}"
    print(re.findall("waited .*", said))
    run = await laptop.run()
    assert run.labels[LOG_END_LABEL] in (run.infrastructure_pid or "")
    assert run.deployment_id is None
    assert run.tags == ["from-a-laptop"]
    assert run.parameters == {"rows": 4, "model": "<Model>"}
    assert (run.job_variables or {}) == {"labels": {"team": "research"}}
    inputs = await laptop.pool.client.filter_flow_run_input(run.id, "ray-", 100, set())
    logs = await laptop.pool.client.read_logs(
        LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
    )
    async with JobsClient(Connection(laptop.pool.defaults["address"])) as jobs:
        listed = str([job for job in await jobs.list() if str(run.id) in str(job)])
    assert str(run.id) in listed
    everything = "".join([*(i.value for i in inputs), *(log.message for log in logs), listed])
    assert not [secret for secret in SECRETS.values() if secret in everything]
    assert [secret for secret in SECRETS.values() if secret in unpacked(inputs)] == []


def unpacked(inputs: list) -> str:
    """Return the content of a bundle as text, as zips are compressed."""
    import base64
    import io
    import zipfile

    (header,) = (BundleHeader.parse(i.value) for i in inputs if i.key == HEADER_KEY)
    content = base64.b64decode(header.content or "")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert "files/parts/maths.py" in archive.namelist()
        return "".join(archive.read(name).decode("latin-1") for name in archive.namelist())


@pytest.mark.extra
async def test_own_exception_comes_back_as_it_was_raised(laptop: Laptop) -> None:
    async with online(laptop.pool):
        said = await laptop.call("failed")
    assert "raised -1 rows 1" in said
    assert (await laptop.run()).state_type == StateType.FAILED


async def test_interrupt_cancels_the_run_and_waits(laptop: Laptop) -> None:
    async with online(laptop.pool):
        process = laptop.start("waits")
        run = await laptop.run()
        await laptop.pool.wait_for_log(run.id, "waiting", seconds=60)
        process.send_signal(signal.SIGINT)
        said, _ = await anyio.to_thread.run_sync(
            lambda: process.communicate(timeout=CALLER_SECONDS)
        )
    assert process.returncode != 0
    assert "Cancelling the flow run" in said
    assert "the hook of the flow" in said, "the end of the run is printed as well"
    assert (await laptop.pool.read(run.id)).state_type == StateType.CANCELLED


async def test_without_a_worker_the_call_says_how_to_start_one(laptop: Laptop) -> None:
    process = laptop.start("called")
    said, _ = await anyio.to_thread.run_sync(lambda: process.communicate(timeout=CALLER_SECONDS))
    assert process.returncode == 1
    assert f"prefect worker start --pool {laptop.pool.name}" in said
    assert await laptop.runs() == []
