"""The Prefect server is away while things happen on the cluster: nothing is lost."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, temporary_settings

from tests.integration.stage import Stage
from tests.prefect_server import PrefectServer


@contextmanager
def stopped(server: PrefectServer) -> Iterator[None]:
    """A server that takes connections and does not answer, as one that swaps or is suspended."""
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


async def test_job_that_ends_while_prefect_is_away_is_settled_when_it_is_back(
    stage: Stage, prefect_api: PrefectServer
) -> None:
    with temporary_settings({PREFECT_API_REQUEST_TIMEOUT: 1.0}):
        async with stage.pool.working():
            run_id, job = await stage.running()
            with stopped(prefect_api):
                job.set("FAILED", driver_exit_code=6)
                # Longer than a request may take: at least one of the worker's has failed.
                await anyio.sleep(3)
            await stage.ends(run_id, StateType.CRASHED, "exit code 6")
            await stage.is_served()


async def test_prefect_that_is_away_between_submission_and_start_loses_no_run(
    stage: Stage, prefect_api: PrefectServer
) -> None:
    """The job is found again under its id, whatever the worker could not report meanwhile."""
    with temporary_settings({PREFECT_API_REQUEST_TIMEOUT: 1.0}):
        async with stage.pool.working():
            run_id = await stage.start()
            job = await stage.job_of(run_id)
            with stopped(prefect_api):
                await anyio.sleep(2.5)
            await stage.pool.wait_for_log(run_id, "is RUNNING")
            assert stage.jobs_of(run_id) == [job]
            job.set("FAILED", driver_exit_code=8)
            await stage.ends(run_id, StateType.CRASHED, "exit code 8")
