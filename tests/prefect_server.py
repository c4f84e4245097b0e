"""A real Prefect server on a free loopback port, in a process and a home of its own."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker

from tests.ports import free_port

_IN_MEMORY = "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true&check_same_thread=false"
_START = Path(__file__).with_name("start_server.py")
_START_SECONDS = 90
_STOP_SECONDS = 15
LEASE_SECONDS = 30
"""How long a run has the slot of its deployment before it renews it: the shortest possible."""


@dataclass(frozen=True)
class PrefectServer:
    """A running server.

    Attributes:
        api_url: What PREFECT_API_URL has to be.
        home: Its PREFECT_HOME.
        pid: Of its only process.
    """

    api_url: str
    home: Path
    pid: int

    def end(self) -> None:
        """End it, from whichever process; it may have ended by itself."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            # Its pid may be another process's by now.
            if process.environ().get("PREFECT_HOME") == str(self.home):
                process.terminate()
                try:
                    process.wait(_STOP_SECONDS)
                except psutil.TimeoutExpired:
                    process.kill()
                    process.wait(_STOP_SECONDS)


@contextmanager
def prefect_server(
    home: Path, extra: Mapping[str, str] | None = None, *, port: int | None = None
) -> Generator[PrefectServer, None, None]:
    """Start a server, wait until it answers, and end it with its context.

    Args:
        home: Its PREFECT_HOME.
        extra: More environment variables for it.
        port: Where it listens; by default on a free port.
    """
    process, server = start_server(home, extra, port=port)
    try:
        yield server
    finally:
        send_what_is_left()
        server.end()
        process.wait(_STOP_SECONDS)


def start_server(
    home: Path, extra: Mapping[str, str] | None = None, *, port: int | None = None
) -> tuple[subprocess.Popen[bytes], PrefectServer]:
    """Start a server as `prefect_server` does, for someone who calls its `end`."""
    port = port or free_port()
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "true",
        "PREFECT_SERVER_UI_ENABLED": "false",
        # With a file, SQLite turns away one of two who write at once, and the 503 that comes of it
        # costs a client seconds. Nobody here reads events, and writing them costs as well.
        "PREFECT_API_DATABASE_CONNECTION_URL": _IN_MEMORY,
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        # Whoever saves a block registers its type.
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
        # Workers that tests kill are to be missed soon.
        "PREFECT_SERVER_SERVICES_FOREMAN_LOOP_SECONDS": "1",
        "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": str(LEASE_SECONDS),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        **(extra or {}),
    }
    home.mkdir(parents=True, exist_ok=True)
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            # -P: its folder has others with the names of packages, as `packaging`.
            [sys.executable, "-P", str(_START), str(port)],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = PrefectServer(f"http://127.0.0.1:{port}/api", home, process.pid)
    try:
        _wait_until_healthy(f"{server.api_url}/health", process, home / "server.log")
    except BaseException:
        server.end()
        raise
    return process, server


def send_what_is_left() -> None:
    """Have this process's logs and events sent now, while their server is there.

    Prefect sends them when the process ends, and then waits long for a server that has gone. In a
    running loop nothing is sent: there, Prefect would return something to await (3.8.8).
    """
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        return
    APILogWorker.drain_all(timeout=10)
    EventsWorker.drain_all(timeout=10)


def _wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx.get(url, timeout=2, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"The Prefect server did not start:\n{log.read_text()[-3000:]}")
