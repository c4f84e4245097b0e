"""Results in S3 are found by every node; those on a node's own disk are not, and that is said."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.filesystems import RemoteFileSystem

from tests.integration.harness import Pool, new_pool
from tests.ports import free_port
from tests.real_ray import real_ray
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.extra]

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "results"
IN_S3 = {"PREFECT_DEFAULT_RESULT_STORAGE_BLOCK": "remote-file-system/results"}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server with a bucket `results`; its credentials are in the environment, as a node's."""
    boto3 = pytest.importorskip("boto3", reason="moto is not installed: pip install '.[s3]'")
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port())
    server.start()
    try:
        url = f"http://127.0.0.1:{server._port}"
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="results")
        yield url
    finally:
        server.stop()


async def run_example(pool: Pool, **job_variables: Any) -> UUID:
    run_id = await pool.start(
        "daily",
        entrypoint="flow.py:daily",
        job_variables=job_variables,
        pull_steps=[
            {"prefect.deployments.steps.set_working_directory": {"directory": str(EXAMPLE)}}
        ],
    )
    run = await pool.wait_for(run_id, seconds=90)
    assert run.state is not None
    assert run.state.is_completed(), run.state
    return run_id


async def states_of_tasks(pool: Pool, run_id: UUID) -> list[str]:
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))

    # The server makes them of events, which come a little later than the flow's end.
    async def all_ended() -> list[str]:
        runs = await pool.client.read_task_runs(flow_run_filter=of_run)
        ended = [run.state for run in runs if run.state and run.state.is_final()]
        return sorted(state.name or "" for state in ended) if len(ended) == 3 else []

    return await wait_until(all_ended, timeout=30, description="three tasks that have ended")


async def test_second_run_elsewhere_takes_the_results_of_the_first(
    prefect_settings: None, s3: str
) -> None:
    """Elsewhere is another cluster here: nothing but the storage is common to both."""
    block = RemoteFileSystem(
        basepath="s3://results/prefect", settings={"client_kwargs": {"endpoint_url": s3}}
    )
    await block.save("results", overwrite=True)
    with real_ray() as one, real_ray() as other:
        async with new_pool({"env": IN_S3}) as pool, pool.working():
            first = await run_example(pool, address=one.address)
            second = await run_example(pool, address=other.address)
            assert await states_of_tasks(pool, first) == ["Completed"] * 3
            assert await states_of_tasks(pool, second) == ["Cached"] * 3
            run = await pool.read(second)
            assert run.state is not None
            # Read here, on a third machine as it were.
            assert await run.state.aresult() == 828


async def test_results_on_the_disk_of_a_node_are_not_found_elsewhere(
    prefect_settings: None, tmp_path: Path
) -> None:
    """Two paths stand for the disks of two nodes."""
    with real_ray() as ray:
        async with new_pool({"address": ray.address}) as pool, pool.working():
            runs: list[UUID] = []
            for node in ("one", "other"):
                env = {"PREFECT_LOCAL_STORAGE_PATH": str(tmp_path / node)}
                runs.append(await run_example(pool, env=env))
            # Nothing fails, and nothing is shared: computed again.
            assert await states_of_tasks(pool, runs[1]) == ["Completed"] * 3
            run = await pool.read(runs[0])
            assert run.state is not None
            (tmp_path / "one").rename(tmp_path / "gone")
            with pytest.raises(Exception, match=r".") as unread:
                await run.state.aresult()
    said = str(unread.value)
    guide = EXAMPLE.parents[1] / "how-to" / "keep-results.md"
    assert f"{type(unread.value).__name__}: Path … does not exist" in guide.read_text()
    assert said.startswith("Path ")
