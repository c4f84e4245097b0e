"""How the local Ray is started: its ports, its directory, its environment, its command."""

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

# A driver that found these would serve metrics on the worker's own port (Prefect 3.8.8).
_FOR_THE_WORKER = frozenset({"PREFECT_CLIENT_METRICS_ENABLED", "PREFECT_CLIENT_ENABLE_METRICS"})

# Below the range of outgoing connections (from 32768 on Linux, 49152 on macOS): one of those could
# take the port between our test and Ray's bind.
_PORTS = range(20_000, 32_000)
_PORT_TRIES = 200
# Unix sockets may have 107 characters (103 on macOS) and Ray adds about 64; $TMPDIR is too long.
_TEMP_PARENT = Path("/tmp")  # noqa: S108 (the directory inside is checked to be ours alone)
_TEMP_PREFIX = "prw-"
# Lower-case RAY_ variables tune Ray's internals, which the user may do. These choose a cluster or
# its storage instead.
_NOT_TUNING = (
    "RAY_gcs_storage",
    "RAY_external_storage_namespace",
    "RAY_enable_autoscaler_v2",
    "RAY_worker_niceness",
)


def require_ray() -> None:
    """Check that Ray is installed, without importing it.

    Raises:
        LocalClusterError: It is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise LocalClusterError(
            "No cluster address is configured, and Ray is not installed to start one on this "
            f'machine. Run `pip install "ray[default]"`, or {SET_AN_ADDRESS}.'
        )


@dataclass(frozen=True)
class Ports:
    """The ports for which Ray has fixed defaults; it draws the others at random."""

    dashboard: int
    agent: int
    client: int

    @classmethod
    def find(cls) -> "Ports":
        """Return three different ports that are free now.

        Raises:
            LocalClusterError: None were found.
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
        """Return whether all of them are free."""
        return all(_is_free(port) for port in (self.dashboard, self.agent, self.client))


class TempDirectory:
    """The directory in /tmp for the sessions, sockets and spilled objects of one local Ray.

    Args:
        path: Its path; see `for_state`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Ray opens its own directory to everybody (mode 0777), so it gets one inside ours.
        self.ray = path / "r"
        self.work = path / "work"

    @classmethod
    def for_state(cls, state: Path) -> "TempDirectory":
        """Return the directory that belongs to a state directory."""
        digest = hashlib.sha256(os.fsencode(state.resolve())).hexdigest()
        return cls(_TEMP_PARENT / f"{_TEMP_PREFIX}{digest[:8]}")

    def create(self) -> None:
        """Create it, for this user only.

        Raises:
            LocalClusterError: Another user owns it, or it cannot be created.
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
        """Delete it if it is one of ours; the path may come from a file."""
        if self.path.parent == _TEMP_PARENT and self.path.name.startswith(_TEMP_PREFIX):
            with suppress(OSError):
                if self._is_ours():
                    shutil.rmtree(self.path, ignore_errors=True)

    def _is_ours(self) -> bool:
        status = self.path.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def command(ports: Ports, temp: TempDirectory) -> list[str]:
    """Return the command line of `ray start`, without a port that another Ray may want."""
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
    """Return the environment of Ray, which is also that of the drivers it starts.

    Args:
        inherited: The worker's environment. Prefect's settings pass; what points Ray to another
            cluster, token or directory does not, nor does the request to serve metrics.
        token_path: The file with the bearer token.
        temp: Ray's directory.
    """
    kept = {
        name: value
        for name, value in inherited.items()
        if not (_steers_ray(name) or name in _FOR_THE_WORKER)
    }
    # The `python` and `prefect` of an entrypoint must be the worker's, also in a virtual env.
    path = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), kept.get("PATH")]))
    return kept | {
        "PATH": path,
        MARKER: str(temp.path),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Otherwise Ray resolves 127.0.0.1 to the machine's address and listens on every interface
        # (`services.get_node_ip_address`, Ray 2.60).
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Otherwise `ray start` waits 30 s for running actors on SIGTERM (Ray 2.60).
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # Two fixed Prometheus ports, which another Ray on this machine may have taken.
        "AUTOSCALER_METRIC_PORT": "0",
        "DASHBOARD_METRIC_PORT": "0",
    }


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many CPUs this process may use, at least 1.

    Ray 2.60 ignores the CPU affinity, and counts 0 CPUs for a quota below one.

    Args:
        cgroup: Where a container sees its control group.
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
    """One start of Ray, which can be called off at any moment.

    Args:
        arguments: The command line.
        env: The whole environment.
        cwd: Working directory of Ray, and of jobs without a `working_dir`.
        log_path: Where its output goes.
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
        """Start it in a session of its own, so that Ctrl-C and the worker's death do not end it.

        Raises:
            LocalClusterError: It was called off, or cannot be executed.
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
            # Not reaped yet: nothing has waited for it.
            identity = ProcessIdentity.of(child.pid)
            processes.adopt(child)
            return identity

    def call_off(self) -> None:
        """Wait for a `start` that is under way in another thread, and let no other begin."""
        with self._lock:
            self._called_off = True


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Otherwise our own closed connections count as taken for a minute.
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
