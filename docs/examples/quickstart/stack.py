"""The processes of the quickstarts: a Prefect server, a worker, a simulated Kubernetes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
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
_KUBERNETES = Path(__file__).with_name("simulated_kubernetes.py")


@dataclass
class Stack:
    """What runs for a quickstart.

    Attributes:
        api_url: The Prefect API.
        worker: Process id of the worker.
        server: Process id of the server, or None if PREFECT_API_URL named one.
        kubernetes: Process id of the simulated Kubernetes, if there is one.
    """

    api_url: str = ""
    worker: int | None = None
    server: int | None = None
    kubernetes: int | None = None

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
        pids = [pid for pid in (stack.worker, stack.server) if pid is not None]
        return stack if all(_is_ours(pid) for pid in pids) and _answers(stack.api_url) else None

    def start_server(self, *, usual_port: bool = True) -> None:
        """Start a Prefect server, unless PREFECT_API_URL names one.

        Args:
            usual_port: Whether it listens where people expect it, if nobody else does.
        """
        if url := os.environ.get("PREFECT_API_URL"):
            self.api_url = url
            return
        port = _port((4200, 0) if usual_port else (0,))
        self.api_url = f"http://127.0.0.1:{port}/api"
        command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        self.server = _spawn(command, "server.log", {"PREFECT_API_URL": self.api_url, **_STREAMS})
        _wait_for(self.server, lambda: _answers(self.api_url), "The Prefect server", "server.log")

    def start_worker(self, **env: str) -> None:
        """Start the worker; it creates its pool."""
        command = ["-m", "prefect", "worker", "start", "--pool", POOL, "--type", "ray"]
        command += ["--name", "quickstart"]
        self.worker = _spawn(command, "worker.log", {"PREFECT_API_URL": self.api_url, **env})

    def start_kubernetes(self) -> Path:
        """Start the simulated Kubernetes, and return the worker's kubeconfig for it."""
        kubeconfig = STATE / "kubeconfig.yaml"
        self.kubernetes = _spawn([str(_KUBERNETES), str(STATE)], "kubernetes.log", {})
        _wait_for(self.kubernetes, kubeconfig.exists, "The simulated Kubernetes", "kubernetes.log")
        return kubeconfig

    def stop(self) -> None:
        """Stop the worker, and with it the Ray that it started; then the rest."""
        # A second Ctrl-C must not leave half of it behind; each wait has an end.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            _end(self.worker, signal.SIGINT)
            _end(self.kubernetes, signal.SIGTERM)
            _end(self.server, signal.SIGTERM)
            (STATE / "stack.json").unlink(missing_ok=True)
        finally:
            signal.signal(signal.SIGINT, before)


def environment() -> dict[str, str]:
    """Return an environment with a separate Prefect home for the quickstart."""
    return {
        **os.environ,
        "PREFECT_HOME": str(STATE / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
        # Ray warns of a `__pycache__` in the folder that it ships to the cluster (2.60).
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _spawn(arguments: list[str], log: str, extra: dict[str, str]) -> int:
    STATE.mkdir(parents=True, exist_ok=True)
    with (STATE / log).open("wb") as output:
        # In a separate session: Ctrl-C ends the quickstart, which then stops these in order.
        return subprocess.Popen(
            [sys.executable, *arguments],
            env={**environment(), **extra},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A background job would hand down an ignored SIGINT, with which we stop it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ).pid


def _wait_for(pid: int, is_up: Callable[[], bool], what: str, log: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not is_up():
        if not _is_ours(pid) or time.monotonic() > deadline:
            _end(pid, signal.SIGKILL)
            raise SystemExit(f"{what} did not start:\n{(STATE / log).read_text()[-2000:]}")
        time.sleep(0.2)


def _end(pid: int | None, how: signal.Signals) -> None:
    if pid is None:
        return
    deadline = time.monotonic() + _STOP_SECONDS
    if _is_ours(pid):
        os.kill(pid, how)
    while _is_ours(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            deadline += _STOP_SECONDS
        time.sleep(0.1)


def _is_ours(pid: int) -> bool:
    """Return whether a process runs and is one of ours, not a later one with the same id."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            process.wait(0)
            return False
        command = process.cmdline()
        return "prefect" in command or str(_KUBERNETES) in command
    except psutil.Error:
        return False


def _answers(api_url: str) -> bool:
    try:
        with urlopen(f"{api_url}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def _port(candidates: tuple[int, ...]) -> int:
    """Return the first port that is free; 0 stands for any."""
    for candidate in candidates:
        with socket.socket() as probe:
            # As the server will do: connections of a server that just ended do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("No free port on 127.0.0.1 for the Prefect server.")
