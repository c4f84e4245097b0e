"""How a worker ends: `--run-once` by itself, and any worker without a line twice or lost."""

import signal
from collections import Counter
from pathlib import Path
from uuid import UUID

import anyio
import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.runs.recovery.labels import OWNER_LABEL
from prefect_ray_worker.shared.ids import attempt_in
from tests.integration.stage import MISSED_SECONDS, Stage
from tests.waiting import wait_until

NEWER = "ba9876543210"
RUNS = 4
LINES = 100
LINE_SECONDS = 0.1


async def taken(stage: Stage, run_id: UUID, attempt: str) -> str:
    """Write on a run that another worker owns an attempt, the present one; return the label."""
    label = f"{attempt} 0123456789ab - other"
    labels = {OWNER_LABEL: label, f"{OWNER_LABEL}.{attempt}": label}
    await stage.pool.client.update_flow_run_labels(run_id, dict(labels))
    return label


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
        await taken(stage, run_id, attempt_in(job.submission_id))
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
            await anyio.sleep(MISSED_SECONDS / 2)
            owner = (await stage.pool.read(run_id)).labels.get(OWNER_LABEL)
            assert "once" in str(owner)
            job.set("FAILED", driver_exit_code=7)
            await stage.ends(run_id, StateType.CRASHED, "exit code 7")
            await wait_until(
                lambda: process.poll() is not None, timeout=30, description="the end of the worker"
            )


async def test_stopped_worker_leaves_the_label_of_a_newer_attempt(stage: Stage) -> None:
    """It wrote its own over it, and the newer attempt's RayCluster was deleted."""
    async with stage.pool.working(name="first", heartbeat_interval_seconds=60):
        run_id, job = await stage.running()
        attempt = attempt_in(job.submission_id or "")
        newer = await taken(stage, run_id, NEWER)
    labels = (await stage.pool.read(run_id)).labels
    assert labels[OWNER_LABEL] == newer
    given_up = str(labels[f"{OWNER_LABEL}.{attempt}"])
    assert given_up.startswith(f"{attempt} - "), "its own attempt is given up"


async def test_stopped_worker_does_not_give_up_what_another_one_has(stage: Stage) -> None:
    async with stage.pool.working(name="first", heartbeat_interval_seconds=60):
        run_id, job = await stage.running()
        attempt = attempt_in(job.submission_id or "")
        of_other = await taken(stage, run_id, attempt)
    labels = (await stage.pool.read(run_id)).labels
    assert {labels[OWNER_LABEL], labels[f"{OWNER_LABEL}.{attempt}"]} == {of_other}


@pytest.mark.parametrize("takes_over", [True, pytest.param(False, marks=pytest.mark.extra)])
async def test_woken_worker_after_the_next_attempt_has_begun_elsewhere(
    stage: Stage, tmp_path: Path, takes_over: bool
) -> None:
    """It forwarded lines again that the new owner had. An attempt that is its own, it finishes."""
    with stage.worker_process(tmp_path / "home", "--name", "sleeper") as process:
        run_id, job = await stage.running()
        job.print("before\n")
        await stage.pool.wait_for_log(run_id, "before")
        process.send_signal(signal.SIGSTOP)
        try:
            if takes_over:
                await taken(stage, run_id, attempt_in(job.submission_id or ""))
            await taken(stage, run_id, NEWER)
            await anyio.sleep(5)  # its lease ends
            job.print("after\n")
        finally:
            process.send_signal(signal.SIGCONT)
        if takes_over:
            await anyio.sleep(5)
            assert "after" not in await stage.pool.logs(run_id)
        else:
            await stage.pool.wait_for_log(run_id, "after")


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
