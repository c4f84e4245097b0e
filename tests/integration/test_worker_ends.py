"""How a worker ends: `--run-once` by itself, and any worker without a line twice or lost."""

import signal
from collections import Counter
from pathlib import Path

import anyio
import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.runs.recovery.labels import OWNER_LABEL, Worker, label_of
from prefect_ray_worker.shared.ids import attempt_in
from tests.integration.stage import MISSED_SECONDS, Stage
from tests.waiting import wait_until

RUNS = 4
LINES = 100
LINE_SECONDS = 0.1


@pytest.mark.extra
async def test_run_once_ends_although_another_worker_owns_its_run(
    stage: Stage, tmp_path: Path
) -> None:
    """It waited for ever for a log that another worker forwarded."""
    run_id = await stage.start()
    with stage.worker_process(tmp_path / "home", "--run-once", "--name", "once") as process:
        job = await stage.job_of(run_id)
        await stage.play(run_id, StateType.RUNNING)
        await stage.pool.wait_for_log(run_id, "is RUNNING")
        assert job.submission_id is not None
        other = Worker("other", instance="0123456789ab")
        label = label_of(other, attempt_in(job.submission_id), None)
        await stage.pool.client.update_flow_run_labels(run_id, {OWNER_LABEL: label})
        await anyio.sleep(5)  # its lease ends
        job.print("a line that the other one forwards\n")
        await anyio.sleep(3)
        await stage.play(run_id, StateType.COMPLETED)
        job.set("SUCCEEDED")
        await wait_until(
            lambda: process.poll() is not None, timeout=30, description="the end of the worker"
        )
    assert not any("other one forwards" in line for line in await stage.pool.logs(run_id))


async def test_run_once_keeps_its_run(stage: Stage, tmp_path: Path) -> None:
    """It sent one heartbeat, so that others took over its run after three missed ones."""
    run_id = await stage.start()
    with stage.worker_process(tmp_path / "home", "--run-once", "--name", "once") as process:
        job = await stage.job_of(run_id)
        await stage.play(run_id, StateType.RUNNING)
        async with stage.heir(name="second"):
            await anyio.sleep(MISSED_SECONDS)
            owner = (await stage.pool.read(run_id)).labels.get(OWNER_LABEL)
            assert "once" in str(owner)
            job.set("FAILED", driver_exit_code=7)
            await stage.ends(run_id, StateType.CRASHED, "exit code 7")
            await wait_until(
                lambda: process.poll() is not None, timeout=30, description="the end of the worker"
            )


async def test_stopped_worker_and_its_heir_forward_each_line_once(
    stage: Stage, tmp_path: Path
) -> None:
    """7 of 45 lines were doubled: the heir began while the stopped worker still forwarded."""

    async with stage.heir(name="second") as _:
        pass  # known to the server before the first one ends
    with stage.worker_process(tmp_path / "home", "--name", "first") as process:
        staged = [await stage.running() for _ in range(RUNS)]

        async def print_lines() -> None:
            for number in range(LINES):
                for _, job in staged:
                    job.print(f"line {number}\n")
                await anyio.sleep(LINE_SECONDS)

        async with stage.heir(name="second"), anyio.create_task_group() as tasks:
            tasks.start_soon(print_lines)
            await anyio.sleep(LINES * LINE_SECONDS / 3)
            process.send_signal(signal.SIGINT)
            await wait_until(
                lambda: process.poll() is not None, timeout=30, description="the end of the worker"
            )
            await anyio.sleep(LINES * LINE_SECONDS)
            for run_id, job in staged:
                job.set("FAILED", driver_exit_code=7)
                await stage.ends(run_id, StateType.CRASHED, "exit code 7", seconds=60)
                await stage.pool.wait_for_log(run_id, f"line {LINES - 1}", seconds=60)
    for run_id, _ in staged:
        seen = Counter(line for line in await stage.pool.logs(run_id) if line.startswith("line "))
        assert seen == Counter(f"line {number}" for number in range(LINES))
