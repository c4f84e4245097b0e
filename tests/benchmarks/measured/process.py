"""A measured process, and the real Prefect server that it talks to."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from prefect.settings import PREFECT_API_URL
from prefect.states import Pending

from tests.integration.harness import Pool, settings_of
from tests.prefect_server import PrefectServer, prefect_server


@dataclass
class Measured:
    """A measured process, which answers a line with a line of JSON."""

    process: asyncio.subprocess.Process

    async def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n".encode())
        await self.process.stdin.drain()
        with anyio.fail_after(120):
            return json.loads(await self.process.stdout.readline())

    async def end(self) -> None:
        """End the process, also when the benchmark itself is being stopped."""
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):  # it has ended by itself
                self.process.kill()
            await self.process.wait()


async def start(module: str, *arguments: str, ids: list[str]) -> Measured:
    """Start a process; the ids come in a file, as a command line may be too short for them."""
    with tempfile.NamedTemporaryFile("w", suffix=".ids", delete=False) as file:
        file.write("".join(f"{i}\n" for i in [*ids, ""]))
    return await start_with(module, *arguments, file.name)


async def start_with(module: str, *arguments: str, serves: str | None = None) -> Measured:
    """Start a process; `serves` is the name of a worker that serves its pool."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"tests.benchmarks.measured.{module}",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=None if os.environ.get("VERBOSE") else asyncio.subprocess.DEVNULL,
        env={
            **os.environ,
            "PREFECT_API_URL": PREFECT_API_URL.value() or "",
            **({"SERVES": serves} if serves else {}),
        },
    )
    return Measured(process)


async def claimed_runs(pool: Pool, number: int) -> list[str]:
    """Make runs that are claimed already, as Prefect's worker would find them."""
    return [run_id async for run_id in claiming_runs(pool, number)]


async def claiming_runs(pool: Pool, number: int) -> AsyncIterator[str]:
    """Make such runs one by one."""
    deployment = await pool.deploy("adds")
    for _ in range(number):
        run = await pool.client.create_flow_run_from_deployment(deployment, state=Pending())
        yield str(run.id)


@contextmanager
def prefect(database: str | None = None) -> Generator[PrefectServer, None, None]:
    """Have a Prefect server, and the settings that lead to it, while the context is open.

    Args:
        database: Its database, `postgresql://…`; by default SQLite in memory.
    """
    extra = {}
    if database is not None:
        url = database.replace("postgresql:", "postgresql+asyncpg:")
        extra["PREFECT_API_DATABASE_CONNECTION_URL"] = url
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with (
            prefect_server(home / "server", extra) as server,
            settings_of(server.api_url, home / "worker"),
        ):
            yield server
