"""Workers of two releases in one pool: runs in flight survive an upgrade, and its way back."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import StateType

from tests.integration.stage import HEARTBEAT_SECONDS, MISSED_SECONDS, STAGE_INTERVAL, Stage
from tests.integration.test_recovery import owner_of, taken_over
from tests.integration.worker_process import worker_process
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
# Stands for the previous release until there is a tag. Its worker's modules all have other names.
EARLIER = "6e17d79ba5a43779dfeae38f4a79e7a210e101fc"

pytestmark = pytest.mark.extra


def git(*arguments: str) -> bytes | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    return done.stdout if done.returncode == 0 else None


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the unpacked wheel of the previous release."""
    tag = git("describe", "--tags", "--abbrev=0", "--match=v*", "HEAD^")
    revision = tag.decode().strip() if tag else EARLIER
    archive = git("archive", revision)
    if archive is None:
        pytest.skip(f"{revision} is not in this checkout: get it with `git fetch --unshallow`")
    source, built, folder = (tmp_path_factory.mktemp(name) for name in ("src", "whl", "old"))
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(source, filter="data")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", built, source],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def environment_of(earlier: Path) -> dict[str, str]:
    # Without the second, Python would take the checkout that is the current folder.
    return {"PYTHONPATH": str(earlier), "PYTHONSAFEPATH": "1"}


def form_of(earlier: Path) -> dict[str, Any]:
    """Return the form of the previous release, which a pool keeps over an upgrade."""
    command = [
        sys.executable,
        "-c",
        "import json; from prefect_ray_worker import RayWorker as W\n"
        "print(json.dumps(W.get_default_base_job_template()))",
    ]
    said = subprocess.run(
        command, env={**os.environ, **environment_of(earlier)}, capture_output=True, check=True
    )
    return json.loads(said.stdout)


@contextmanager
def earlier_worker(
    stage: Stage, earlier: Path, home: Path, name: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a worker of the previous release, with this environment's Prefect and Ray."""
    env = {
        **environment_of(earlier),
        "PREFECT_WORKER_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
        "PREFECT_INTEGRATIONS_RAY_WORKER_POLL_INTERVAL_SECONDS": str(STAGE_INTERVAL),
    }
    command = [sys.executable, "-c", "import prefect_ray_worker as p; print(p.__file__)"]
    said = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    assert said.stdout.startswith(str(earlier)), said
    with worker_process(stage.pool.name, home, "--name", name, env=env) as process:
        yield process


async def ended(process: "subprocess.Popen[bytes]") -> None:
    """Stop a worker as a rolling update does."""
    process.send_signal(signal.SIGTERM)
    await wait_until(
        lambda: process.poll() is not None, timeout=20, description="the worker to end"
    )


async def test_new_worker_takes_over_the_runs_of_the_previous_release(
    stage: Stage, earlier: Path, tmp_path: Path
) -> None:
    form = WorkPoolUpdate(base_job_template=form_of(earlier))
    await stage.pool.client.update_work_pool(stage.pool.name, form)
    with earlier_worker(stage, earlier, tmp_path / "home", "old") as process:
        crashed, failed = await stage.running()
        cancelled, stopped = await stage.running(stop_grace_seconds=1)
        assert "old" in await owner_of(stage, crashed)
        # For a while both serve the pool.
        async with stage.heir(name="new"):
            await ended(process)
            for run_id in (crashed, cancelled):
                await taken_over(stage, run_id, "new")
            failed.set("FAILED", driver_exit_code=7)
            await stage.ends(crashed, StateType.CRASHED, "exit code 7")
            await stage.pool.cancel(cancelled)
            await stage.ends(cancelled, StateType.CANCELLED, seconds=MISSED_SECONDS)
    assert stopped.status == "STOPPED"
    assert [len(stage.jobs_of(run_id)) for run_id in (crashed, cancelled)] == [1, 1]


async def test_worker_of_the_previous_release_takes_runs_back(
    stage: Stage, earlier: Path, tmp_path: Path
) -> None:
    """A roll-back: the new release has started a run, and the previous one has to end it."""
    with earlier_worker(stage, earlier, tmp_path / "home", "old"):
        async with stage.heir(name="new"):
            runs = [await stage.running() for _ in range(3)]
        for run_id, _ in runs:
            await taken_over(stage, run_id, "old")
        for run_id, job in runs:
            job.set("FAILED", driver_exit_code=7)
            await stage.ends(run_id, StateType.CRASHED, seconds=MISSED_SECONDS)
    assert [len(stage.jobs_of(run_id)) for run_id, _ in runs] == [1, 1, 1]
