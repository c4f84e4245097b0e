"""A process that calls flows without a deployment: a laptop that no node shares files with."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL

from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from tests.integration.harness import Pool
from tests.integration.worker_process import heed_interrupts
from tests.mounts import can_hide_files
from tests.waiting import wait_until

FILES = Path(__file__).parent / "laptop"
CALLER_SECONDS = 120


@dataclass
class Laptop:
    """A folder that only its own processes see, and what starts one there.

    Attributes:
        pool: The work pool that it calls.
        folder: Empty for everybody else.
        env: More environment variables for its processes.
        extra_files: More files for its folder.
    """

    pool: Pool
    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    extra_files: list[Path] = field(default_factory=list)

    def start(
        self,
        *arguments: str,
        python: str = sys.executable,
        program: Sequence[str] = ("calls.py",),
    ) -> "subprocess.Popen[str]":
        """Start `calls.py`, or another program in its folder, with arguments."""
        home = self.folder / "project"
        home.mkdir(parents=True, exist_ok=True)
        extra = "".join(f"cp {file} {home} && " for file in self.extra_files)
        run = f"{extra}cd {home} && exec {shlex.join([python, *program, *arguments])}"
        if can_hide_files():
            hidden = f"mount -t tmpfs none {home} && cp -r {FILES}/. {home} && {run}"
            command = ["unshare", "-m", "sh", "-c", hidden]
        else:
            shutil.copytree(FILES, home, dirs_exist_ok=True)
            command = ["sh", "-c", run]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_"))}
        env = {
            **clean,
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            "PREFECT_HOME": str(self.folder / "prefect-home"),
            "PYTHONUNBUFFERED": "1",
            "POOL": self.pool.name,
            **self.env,
        }
        return subprocess.Popen(
            command,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=heed_interrupts,
        )

    async def call(self, *arguments: str, seconds: float = CALLER_SECONDS, **options: Any) -> str:
        """Run `calls.py` to its end; return what it printed."""
        process = self.start(*arguments, **options)
        try:
            said, _ = await anyio.to_thread.run_sync(process.communicate, None, seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = await anyio.to_thread.run_sync(process.communicate)
        assert process.returncode == 0, said
        return said

    async def runs(self) -> list[FlowRun]:
        """Return the flow runs of the pool."""
        return await self.pool.client.read_flow_runs(
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self.pool.name]))
        )

    async def run(self) -> FlowRun:
        """Wait for the one flow run of the pool."""

        async def there() -> list[FlowRun]:
            return await self.runs()

        (found,) = await wait_until(there, timeout=30, description="the call's run")
        return found


async def set_address(pool: Pool, **defaults: Any) -> None:
    """Give the pool the address of its cluster, as callers name none, and other defaults."""
    found = await pool.client.read_work_pool(pool.name)
    template = found.base_job_template
    for name, value in {"address": pool.defaults["address"], **defaults}.items():
        template["variables"]["properties"][name]["default"] = value
    await pool.client.update_work_pool(pool.name, WorkPoolUpdate(base_job_template=template))


@asynccontextmanager
async def online(pool: Pool) -> AsyncIterator[None]:
    """Run a worker of the pool that Prefect knows of."""
    async with pool.working():
        await is_online(pool)
        yield


async def is_online(pool: Pool) -> None:
    """Wait until a worker of the pool is online."""

    async def there() -> bool:
        return bool(await FlowRuns(pool.client).online_workers(pool.name))

    await wait_until(there, timeout=30, description="a worker online")
