"""Starts a real Ray head for tests, and leaves nothing of it behind.

Never `ray stop`: that would end every Ray of this machine. Several may run at once, each
with its own ports and its own directory.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.ports import free_ports

# Ray ends processes of tasks above the number of CPUs once they have been idle for 1 s, and each
# that it starts costs 3 s of CPU.
KEEPS_PROCESSES = {"RAY_num_workers_soft_limit": "16"}
# Which optional parts `start_ray.py` starts.
PARTS_VARIABLE = "PRWT_RAY_PARTS"
# Every process of one Ray inherits this variable, so those that lost their parent are found too.
_MARKER = "PRWT_TEST_RAY"
# What a head and the drivers that join it have to agree on.
TERMS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without it Ray replaces 127.0.0.1 with the machine's address, which others can reach.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # `ray start` turns tokens on by itself where ~/.ray/auth_token exists.
    "RAY_AUTH_MODE": "disabled",
}
# A head starts a process for each of its CPUs when its first driver comes, which few tests use.
_FEW_PROCESSES = {"RAY_prestart_worker_first_driver": "0"}
_READY_SECONDS = 60
_GRACE_SECONDS = 6
_ATTEMPTS = 3
_START = Path(__file__).with_name("start_ray.py")
_LOG = "ray-start.log"


@dataclass(frozen=True)
class RealRay:
    """A running Ray head.

    Attributes:
        address: Of its dashboard, `http://127.0.0.1:<port>`.
        pid: Of `ray start --block`; the parent of all its processes.
        temp_dir: Its `--temp-dir`; sessions and logs are below.
        gcs_address: Where drivers and further nodes join, `127.0.0.1:<port>`.
        client_address: Where Ray Client connects if it has that part, `127.0.0.1:<port>`.
    """

    address: str
    pid: int
    temp_dir: Path
    gcs_address: str
    client_address: str

    def end(self) -> None:
        """End it with all that it started, from whichever process, and remove its files."""
        _end_ray(self.temp_dir)


@contextmanager
def real_ray(
    num_cpus: int = 2,
    env: Mapping[str, str | None] | None = None,
    *,
    parts: str = "",
    **options: object,
) -> Iterator[RealRay]:
    """Run a Ray head on this machine for the length of a `with` block.

    Jobs find this interpreter as `python`. Variables `RAY_*` and `PREFECT_*` of the calling
    process are not passed on: a cluster is not its worker's child.

    Args:
        num_cpus: CPUs that Ray believes in.
        env: More environment variables for the head, and so for all its jobs; None removes one.
        parts: What else it starts, each for a second of CPU: `monitor`, without which it does not
            say which resources are in use, `logs`, which prints what tasks print in their driver
            too, and `client`, the server of Ray Client.
        **options: More for `ray start`, with underscores.
    """
    process, ray = start_ray(num_cpus, env, parts=parts, **options)
    try:
        yield ray
    finally:
        if process.poll() is not None:
            print(f"Ray ended by itself:\n{_log_of(ray.temp_dir)}", file=sys.stderr)
        ray.end()
        process.wait(timeout=_GRACE_SECONDS)


def start_ray(
    num_cpus: int, env: Mapping[str, str | None] | None, *, parts: str, **options: object
) -> tuple[subprocess.Popen[bytes], RealRay]:
    """Start a head as `real_ray` does, for someone who calls its `end`."""
    # Short, because the paths of Ray's unix sockets below it may not exceed 107 bytes.
    temp_dir = Path(tempfile.mkdtemp(prefix="prwt-", dir="/tmp"))
    environment = environment_of(temp_dir, {**_FEW_PROCESSES, PARTS_VARIABLE: parts, **(env or {})})
    try:
        for _ in range(_ATTEMPTS):
            ports = free_ports(7)
            address = f"http://127.0.0.1:{ports[0]}"
            command = head_command(temp_dir, num_cpus, ports, gcs_port=ports[6], more=options)
            process = spawn(command, environment, temp_dir / _LOG)
            # Somebody may take a port between our look and Ray's bind: hence more attempts.
            if is_ready(address, process, environment, agent=ports[1]):
                gcs, client = f"127.0.0.1:{ports[6]}", f"127.0.0.1:{ports[3]}"
                return process, RealRay(address, process.pid, temp_dir, gcs, client)
            end(process, marker=str(temp_dir))
        raise RuntimeError(f"Ray did not start:\n{_log_of(temp_dir)}")
    except BaseException:
        _end_ray(temp_dir)
        raise


def _end_ray(temp_dir: Path) -> None:
    marker = str(temp_dir)
    # Not the family of its pid, which may be another process's by now.
    _end_all({one for p in marked(marker) for one in _family(p.pid)}, marker=marker)
    shutil.rmtree(temp_dir, ignore_errors=True)


def _log_of(temp_dir: Path) -> str:
    return (temp_dir / _LOG).read_text()[-4000:]


def head_command(
    temp_dir: Path,
    num_cpus: int,
    ports: list[int],
    *,
    gcs_port: int = 0,
    more: Mapping[str, object] | None = None,
) -> list[str]:
    """Return the command that starts a head.

    Args:
        temp_dir: Its `--temp-dir`.
        num_cpus: CPUs that Ray believes in.
        ports: Six free ports; the first is the dashboard's.
        gcs_port: Where other nodes find it; 0 if there are none.
        more: More for `ray start`, with underscores.
    """
    options: dict[str, object] = {
        "num-cpus": num_cpus,
        "port": gcs_port,
        "node-ip-address": "127.0.0.1",
        "dashboard-host": "127.0.0.1",
        "dashboard-port": ports[0],
        "dashboard-agent-listen-port": ports[1],
        "dashboard-agent-grpc-port": ports[2],
        "ray-client-server-port": ports[3],
        "metrics-export-port": ports[4],
        "runtime-env-agent-port": ports[5],
        # 0 lets the system choose; the default range is the same for every Ray of a machine.
        "min-worker-port": 0,
        "max-worker-port": 0,
        "object-store-memory": 200_000_000,
        "temp-dir": temp_dir,
        **{name.replace("_", "-"): value for name, value in (more or {}).items()},
    }
    # -P: its folder has others with the names of packages, as `packaging`.
    start = [sys.executable, "-P", str(_START), "start", "--head", "--block"]
    return [*start, *(f"--{key}={value}" for key, value in options.items())]


def environment_of(marker: object, env: Mapping[str, str | None]) -> dict[str, str]:
    """Return the environment of a node's processes, with a text by which `marked` finds them."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PREFECT_"))}
    variables = {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        **TERMS,
        # Below a longer one, such as pytest's, the dashboard cannot make its sockets.
        "TMPDIR": "/tmp",
        _MARKER: str(marker),
        **env,
    }
    return {name: value for name, value in variables.items() if value is not None}


def spawn(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start `ray start --block` in a session of its own."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=environment,
            # Jobs start here: not in the repository, whose files they must not find by chance.
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def is_ready(
    address: str,
    process: subprocess.Popen[bytes],
    environment: Mapping[str, str],
    *,
    agent: int,
) -> bool:
    """Wait for the dashboard and the agent; false when the head has ended or takes too long.

    A node whose agent does not come up ends, and the head with it.
    """
    token = environment.get("RAY_AUTH_TOKEN")
    of_the_home = Path(environment["HOME"]) / ".ray" / "auth_token"
    if token is None and of_the_home.exists():  # Ray 2.60 then wants it of everyone
        token = of_the_home.read_text().strip()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    deadline = time.monotonic() + _READY_SECONDS
    with httpx.Client(trust_env=False, timeout=5, headers=headers) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.get(f"{address}/api/version").is_success:
                    return listens(process, agent, within=_READY_SECONDS)
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    return False


def listens(process: subprocess.Popen[bytes], port: int, *, within: float) -> bool:
    """Wait until somebody listens on a port; false when the process has ended or takes too long."""
    deadline = time.monotonic() + within
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        time.sleep(0.1)
    return False


def end(process: subprocess.Popen[bytes], *, marker: str) -> None:
    """End the head and everything it started, and wait until all of it is gone."""
    # Collected before the first signal: orphans cannot be found through their parents.
    _end_all(_family(process.pid) | marked(marker), marker=marker)
    process.wait(timeout=_GRACE_SECONDS)


def _end_all(doomed: set[psutil.Process], *, marker: str) -> None:
    _signal(doomed, "terminate")
    psutil.wait_procs(doomed, timeout=_GRACE_SECONDS)
    leftovers = {p for p in doomed if p.is_running()} | marked(marker)
    _signal(leftovers, "kill")
    psutil.wait_procs(leftovers, timeout=_GRACE_SECONDS)


def _family(pid: int) -> set[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return {root, *root.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def marked(marker: str) -> set[psutil.Process]:
    """Return every process of one node, its drivers included."""
    marked: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARKER) == marker:
                marked.add(process)
        except psutil.Error:
            continue
    return marked


def _signal(processes: set[psutil.Process], how: str) -> None:
    for process in processes:
        try:
            getattr(process, how)()
        except psutil.NoSuchProcess:
            continue
