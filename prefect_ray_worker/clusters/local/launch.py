"""Prepares and runs `ray start` for the local Ray: ports, directory, environment and command."""

import hashlib
import importlib.util
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prefect_ray_worker.clusters.local import processes
from prefect_ray_worker.clusters.local.processes import MARKER, ProcessIdentity
from prefect_ray_worker.errors import LocalClusterError

LOOPBACK = "127.0.0.1"
SET_AN_ADDRESS = (
    "set the address of a running cluster (job variable `address`, a `cluster` block, or "
    "PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS)"
)

# With these set, a driver would serve metrics on the worker's own port (Prefect 3.8.8).
_FOR_THE_WORKER = frozenset({"PREFECT_CLIENT_METRICS_ENABLED", "PREFECT_CLIENT_ENABLE_METRICS"})

# Below the range of outgoing connections (from 32768 on Linux, 49152 on macOS). An outgoing
# connection could otherwise take a port between our test and Ray's bind.
_PORTS = range(20_000, 32_000)
_PORT_TRIES = 200
# The path of a Unix socket has at most 107 characters (103 on macOS), and Ray adds about 64, so
# $TMPDIR can be too long.
_TEMP_PARENT = Path("/tmp")  # noqa: S108 (the directory inside is checked to be ours alone)
_TEMP_PREFIX = "prw-"
# Ray's dashboard starts processes by `multiprocessing`, which listens on a socket below $TMPDIR and
# adds 32 characters (Python 3.11, Ray 2.60). Where the path is too long, the dashboard ends without
# a word from `ray start`.
_LONGEST_TMPDIR = 70
# RAY_ variables in lower case tune Ray's internals, and users can set them. These are exceptions:
# they choose a cluster or its storage.
_NOT_TUNING = (
    "RAY_gcs_storage",
    "RAY_external_storage_namespace",
    "RAY_enable_autoscaler_v2",
    "RAY_worker_niceness",
)


def require_ray() -> None:
    """Check that Ray is installed, without importing it.

    Raises:
        LocalClusterError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise LocalClusterError(
            "No cluster address is configured, and Ray is not installed to start one on this "
            f'machine. Run `pip install "ray[default]"`, or {SET_AN_ADDRESS}.'
        )


@dataclass(frozen=True)
class Ports:
    """Free ports to use instead of Ray's fixed defaults. Ray picks its other ports at random."""

    dashboard: int
    agent: int
    client: int

    @classmethod
    def find(cls) -> "Ports":
        """Return three different ports that are free now.

        Raises:
            LocalClusterError: Fewer than three free ports were found.
        """
        found: list[int] = []
        for port in random.sample(_PORTS, _PORT_TRIES):
            if _is_free(port):
                found.append(port)
            if len(found) == 3:
                return cls(*found)
        raise LocalClusterError(
            f"No free port between {_PORTS.start} and {_PORTS.stop} on {LOOPBACK} for the local "
            f"Ray. Free some, or {SET_AN_ADDRESS}."
        )

    def are_free(self) -> bool:
        """Return whether all three ports are free."""
        return all(_is_free(port) for port in (self.dashboard, self.agent, self.client))


class TempDirectory:
    """The directory in /tmp for the sessions, sockets and spilled objects of one local Ray.

    Args:
        path: Path of the directory; see `for_state`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Ray gives its own directory mode 0777, so it gets one inside our private directory.
        self.ray = path / "r"
        self.work = path / "work"

    @classmethod
    def for_state(cls, state: Path) -> "TempDirectory":
        """Return the directory that belongs to a state directory."""
        digest = hashlib.sha256(os.fsencode(state.resolve())).hexdigest()
        return cls(_TEMP_PARENT / f"{_TEMP_PREFIX}{digest[:8]}")

    def create(self) -> None:
        """Create the directory with access for this user only.

        Raises:
            LocalClusterError: Another user owns the directory, or it cannot be created.
        """
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            if not self._is_ours():
                raise LocalClusterError(
                    f"{self.path}, where the local Ray would keep its sockets, belongs to "
                    f"another user. Remove it, choose another PREFECT_HOME, or {SET_AN_ADDRESS}."
                )
            self.path.chmod(0o700)
            self.work.mkdir(exist_ok=True)
        except OSError as exc:
            raise LocalClusterError(
                f"The local Ray needs the directory {self.path} ({exc}). Make /tmp writable, "
                f"or {SET_AN_ADDRESS}."
            ) from exc

    def remove(self) -> None:
        """Delete the directory if it is ours. The check matters: the path can come from a file."""
        if self.path.parent == _TEMP_PARENT and self.path.name.startswith(_TEMP_PREFIX):
            with suppress(OSError):
                if self._is_ours():
                    shutil.rmtree(self.path, ignore_errors=True)

    def _is_ours(self) -> bool:
        status = self.path.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def command(ports: Ports, temp: TempDirectory) -> list[str]:
    """Return the command line of `ray start`, without ports that another Ray uses by default."""
    options = {
        "node-ip-address": LOOPBACK,
        "port": 0,
        "dashboard-host": LOOPBACK,
        "dashboard-port": ports.dashboard,
        "dashboard-agent-listen-port": ports.agent,
        "ray-client-server-port": ports.client,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "include-dashboard": "true",
        "num-cpus": usable_cpus(),
        "temp-dir": temp.ray,
        "log-style": "record",
        "log-color": "false",
    }
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [*start, "--disable-usage-stats", *flags]


def environment(
    inherited: Mapping[str, str], token_path: Path, temp: TempDirectory
) -> dict[str, str]:
    """Return the environment of Ray. The drivers that Ray starts inherit it.

    Args:
        inherited: The worker's environment. Prefect's settings are kept. Variables that point Ray
            to another cluster, token or directory, or turn on metrics, are removed.
        token_path: The file with the bearer token.
        temp: The directory for Ray's files. It takes the place of a TMPDIR that is too long.
    """
    kept = {
        name: value
        for name, value in inherited.items()
        if not (_steers_ray(name) or name in _FOR_THE_WORKER)
    }
    if len(kept.get("TMPDIR", "")) > _LONGEST_TMPDIR:
        kept["TMPDIR"] = str(temp.path)
    # An entrypoint must run the worker's `python` and `prefect`, also in a virtual environment.
    path = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), kept.get("PATH")]))
    return kept | {
        "PATH": path,
        MARKER: str(temp.path),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Without this, Ray resolves 127.0.0.1 to the machine's address and listens on every
        # interface (`services.get_node_ip_address`, Ray 2.60).
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Without this, `ray start` waits 30 s for running actors on SIGTERM (Ray 2.60).
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # By default, Prometheus gets two fixed ports, which another Ray on this machine can hold.
        "AUTOSCALER_METRIC_PORT": "0",
        "DASHBOARD_METRIC_PORT": "0",
    }


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many CPUs this process can use, at least 1.

    Ray 2.60 ignores the CPU affinity, and counts 0 CPUs if the quota is below one CPU.

    Args:
        cgroup: Directory of the control group, as seen from inside a container.
    """
    cpus = os.cpu_count() or 1
    if sys.platform == "linux":
        cpus = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = _cpu_quota(cgroup)
        if quota > 0:
            cpus = min(cpus, quota // period)
    return max(1, cpus)


class Launch:
    """One start of Ray, which another thread can call off at any time.

    Args:
        arguments: The command line.
        env: The complete environment; nothing else is inherited.
        cwd: Working directory of Ray, and of jobs without a `working_dir`.
        log_path: The file for Ray's output.
    """

    def __init__(
        self, arguments: list[str], env: dict[str, str], *, cwd: Path, log_path: Path
    ) -> None:
        self._arguments = arguments
        self._env = env
        self._cwd = cwd
        self._log_path = log_path
        self._lock = threading.Lock()
        self._called_off = False

    def start(self) -> ProcessIdentity:
        """Start Ray in its own session, so that Ctrl-C and the worker's death do not end it.

        Raises:
            LocalClusterError: The start was called off, or the command cannot be executed.
        """
        with self._lock:
            if self._called_off:
                raise LocalClusterError("The start of the local Ray was called off.")
            try:
                with self._log_path.open("wb") as log:
                    child = subprocess.Popen(  # noqa: S603 (our own command line, no shell)
                        self._arguments,
                        env=self._env,
                        cwd=self._cwd,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
            except OSError as exc:
                raise LocalClusterError(f"`ray start` cannot be executed ({exc}).") from exc
            # Safe even if it has already exited: nothing has reaped it yet.
            identity = ProcessIdentity.of(child.pid)
            processes.adopt(child)
            return identity

    def call_off(self) -> None:
        """Prevent any further `start`. Waits for one that is running in another thread."""
        with self._lock:
            self._called_off = True


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Without this, a port that we just closed counts as taken for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _steers_ray(name: str) -> bool:
    if not name.startswith("RAY_"):
        return False
    is_tuning = name.removeprefix("RAY_")[:1].islower() and name not in _NOT_TUNING
    return not is_tuning


def _cpu_quota(cgroup: Path) -> tuple[int, int]:
    unified = cgroup / "cpu.max"
    if unified.exists():
        quota, period = unified.read_text(encoding="ascii").split()
        return int(quota), int(period)
    old = cgroup / "cpu"
    quota = (old / "cpu.cfs_quota_us").read_text(encoding="ascii")
    period = (old / "cpu.cfs_period_us").read_text(encoding="ascii")
    return int(quota), int(period)
