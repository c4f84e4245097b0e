"""The processes of the quickstart: a Prefect server and a worker, recorded by process id."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parents[3]
STATE = Path(os.environ.get("QUICKSTART_STATE", ROOT / ".quickstart"))
POOL = "ray-quickstart"

_START_SECONDS = 90
# With these, a server streams the logs of runs to whoever follows them.
_STREAMS = {
    "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
    "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
}
_STOP_SECONDS = 40


@dataclass
class Stack:
    """What runs for the quickstart.

    Attributes:
        api_url: The Prefect API.
        worker: Process id of the worker.
        server: Process id of the server, or None if PREFECT_API_URL named one.
    """

    api_url: str
    worker: int
    server: int | None

    @property
    def ui_url(self) -> str:
        return self.api_url.removesuffix("/api")

    def remember(self) -> None:
        """Record what runs, for the next call."""
        (STATE / "stack.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def kept(cls) -> "Stack | None":
        """Return the stack that `KEEP=1` left up, if it still runs."""
        try:
            stack = cls(**json.loads((STATE / "stack.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        pids = [stack.worker] if stack.server is None else [stack.worker, stack.server]
        return stack if all(_is_ours(pid) for pid in pids) and _answers(stack.api_url) else None

    def stop(self) -> None:
        """Stop the worker, and with it the Ray that it started; then the server."""
        _end(self.worker, signal.SIGINT)
        if self.server is not None:
            _end(self.server, signal.SIGTERM)
        (STATE / "stack.json").unlink(missing_ok=True)


def start_server() -> tuple[str, int | None]:
    """Start a Prefect server, unless PREFECT_API_URL names one; return its URL and pid."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url, None
    port = _port()
    url = f"http://127.0.0.1:{port}/api"
    command = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    pid = _spawn(command, "server.log", {"PREFECT_API_URL": url, **_STREAMS})
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(url):
        if not _is_ours(pid) or time.monotonic() > deadline:
            _end(pid, signal.SIGKILL)
            log = (STATE / "server.log").read_text()[-2000:]
            raise SystemExit(f"The Prefect server did not start:\n{log}")
        time.sleep(0.2)
    return url, pid


def start_worker(api_url: str) -> int:
    """Start the worker; it creates its pool."""
    command = ["worker", "start", "--pool", POOL, "--type", "ray"]
    return _spawn(command, "worker.log", {"PREFECT_API_URL": api_url})


def environment() -> dict[str, str]:
    """Return an environment with a separate Prefect home for the quickstart."""
    return {
        **os.environ,
        "PREFECT_HOME": str(STATE / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
    }


def _spawn(command: list[str], log: str, extra: dict[str, str]) -> int:
    STATE.mkdir(exist_ok=True)
    with (STATE / log).open("wb") as output:
        # In a separate session: Ctrl-C ends the quickstart, which then stops these in order.
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", *command],
            env={**environment(), **extra},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A background job would hand down an ignored SIGINT, with which we stop it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ).pid


def _end(pid: int, how: signal.Signals) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    if _is_ours(pid):
        os.kill(pid, how)
    while _is_ours(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            deadline += _STOP_SECONDS
        time.sleep(0.1)


def _is_ours(pid: int) -> bool:
    """Return whether a process runs and is a `prefect`, not a later one with the same id."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            process.wait(0)
            return False
        return "prefect" in process.cmdline()
    except psutil.Error:
        return False


def _answers(api_url: str) -> bool:
    try:
        with urlopen(f"{api_url}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def _port() -> int:
    """Return Prefect's usual port if it is free, else another one."""
    for candidate in (4200, 0):
        with socket.socket() as probe:
            # As the server will do: connections of a server that just ended do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("No free port on 127.0.0.1 for the Prefect server.")
