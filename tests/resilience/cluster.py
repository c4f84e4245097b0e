"""A Ray whose parts can be killed one by one: a head, a second node, and a Redis for its memory."""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.ports import free_ports
from tests.real_ray import (
    PARTS_VARIABLE,
    end,
    environment_of,
    head_command,
    is_ready,
    listens,
    marked,
    spawn,
)

SLOT = "slot"
"""A resource of which the head has one: whoever holds it keeps others PENDING."""
NODE = "second_node"
"""A resource of the second node: places a driver there."""

# What the variable RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER decides is decided here for one process only:
# a second node may be started, and 127.0.0.1 is not replaced with the machine's own address, where
# the head does not listen (Ray 2.60).
_START_NODE = """
import ray._private.ray_constants as constants, ray._private.services as services
constants.ENABLE_RAY_CLUSTER = True
services.resolve_ip_for_localhost = lambda host: host
from ray.scripts.scripts import main
main()
"""

_ATTEMPTS = 3
_READY_SECONDS = 120


class ChaosCluster:
    """One cluster on this machine.

    Attributes:
        port: Of the dashboard; the same after a restart.

    Args:
        folder: Its `--temp-dir`.
        env: Environment variables of all its processes.
    """

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._folder = folder
        self._env = env
        *self._ports, self._gcs = free_ports(7)
        self.port = self._ports[0]
        self._was_up = False
        self._head: subprocess.Popen[bytes] | None = None
        self._node: subprocess.Popen[bytes] | None = None

    @property
    def _head_marker(self) -> str:
        return f"{self._folder}/head"

    @property
    def _node_marker(self) -> str:
        return f"{self._folder}/node"

    def start_head(self) -> None:
        """Start the head, or start it again at the same place."""
        for _ in range(_ATTEMPTS):
            if self._has_started():
                return
            self.kill_head()
            if self._was_up:
                continue  # workers and nodes look for it there
            *self._ports, self._gcs = free_ports(7)
            self.port = self._ports[0]
        log = (self._folder / "ray-start.log").read_text()
        raise RuntimeError(f"The head did not start:\n{log[-3000:]}")

    def _has_started(self) -> bool:
        """Start it once; say whether it and its agent have come up: ports may have been taken."""
        command = [
            *head_command(self._folder, 2, self._ports, gcs_port=self._gcs),
            f'--resources={{"{SLOT}": 1}}',
        ]
        environment = environment_of(self._head_marker, {PARTS_VARIABLE: "monitor", **self._env})
        self._head = spawn(command, environment, self._folder / "ray-start.log")
        address, agent = f"http://127.0.0.1:{self.port}", self._ports[1]
        has_started = is_ready(address, self._head, environment, agent=agent)
        self._was_up |= has_started
        return has_started

    def start_node(self) -> None:
        """Start the second node, and wait for it."""
        for _ in range(_ATTEMPTS):
            if self._node_has_started():
                return
        log = (self._folder / "ray-node.log").read_text()
        raise RuntimeError(f"The second node did not start:\n{log[-3000:]}")

    def _node_has_started(self) -> bool:
        ports = free_ports(3)
        command = [
            *(sys.executable, "-c", _START_NODE, "start", "--block"),
            f"--address=127.0.0.1:{self._gcs}",
            "--node-ip-address=127.0.0.1",
            f"--dashboard-agent-listen-port={ports[0]}",
            f"--dashboard-agent-grpc-port={ports[1]}",
            f"--metrics-export-port={ports[2]}",
            *("--min-worker-port=0", "--max-worker-port=0", "--num-cpus=1"),
            "--object-store-memory=100000000",
            f'--resources={{"{NODE}": 1}}',
        ]
        environment = environment_of(self._node_marker, self._env)
        self._node = spawn(command, environment, self._folder / "ray-node.log")
        return listens(self._node, ports[0], within=_READY_SECONDS)

    def kill_head(self) -> None:
        """Kill every process of the head's machine at once, drivers on it included."""
        assert self._head is not None
        _kill(self._family_of_head())
        self._head.wait()
        # With it, `ray start` takes the second node for the head that it is to start (2.60).
        (self._folder / "ray_current_cluster").unlink(missing_ok=True)

    def kill_raylet_of_node(self) -> None:
        """Kill the second node's raylet, and nothing else of the node."""
        _kill({p for p in marked(self._node_marker) if p.name() == "raylet"})

    def part_of_head(self, title: str) -> psutil.Process:
        """Return the one process of the head whose command line has a text in it."""
        family = self._family_of_head()
        found = [p for p in family if title in " ".join(_command_of(p))]
        assert found, f"no {title} among {[_command_of(p)[:4] for p in family]}"
        # Of a process and its forks that have not taken a name yet, the oldest.
        return min(found, key=lambda p: p.create_time())

    def _family_of_head(self) -> set[psutil.Process]:
        """Return its processes, also those that have written their title over what marks them."""
        family: set[psutil.Process] = set()
        for process in marked(self._head_marker):
            with suppress(psutil.NoSuchProcess):  # it was a short one
                family |= {process, *process.children(recursive=True)}
        return family

    def keep_the_rest(self) -> None:
        """Freeze `ray start --block`, which ends the head when one of its parts dies."""
        assert self._head is not None
        self._head.send_signal(signal.SIGSTOP)

    def restart(self, process: psutil.Process) -> None:
        """Kill one process of the head and start it again as it was."""
        command, environment, folder = process.cmdline(), process.environ(), process.cwd()
        process.kill()
        log = (self._folder / "restarted.log").open("ab")
        with log:
            subprocess.Popen(
                command, env=environment, cwd=folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def end(self) -> None:
        """End all of it."""
        for process, marker in ((self._node, self._node_marker), (self._head, self._head_marker)):
            if process is not None:
                process.send_signal(signal.SIGCONT)
                end(process, marker=marker)


@contextmanager
def cluster(*, node: bool = False, redis: bool = False) -> Iterator[ChaosCluster]:
    """Run a cluster for as long as the context is open.

    Args:
        node: Whether it has a second node.
        redis: Whether its head keeps its memory in a Redis, and so survives a restart.
    """
    # Short, because the paths of Ray's unix sockets below it may not exceed 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="prwc-", dir="/tmp"))
    # A driver of one run must find nothing of the machine's user.
    env = {"PREFECT_HOME": str(folder / "prefect")}
    memory: subprocess.Popen[bytes] | None = None
    try:
        if redis:
            (port,) = free_ports(1)
            memory = _redis(port, folder)
            env["RAY_REDIS_ADDRESS"] = f"127.0.0.1:{port}"
        running = ChaosCluster(folder, env)
        try:
            running.start_head()
            if node:
                running.start_node()
            yield running
        finally:
            running.end()
    finally:
        if memory is not None:
            memory.kill()
            memory.wait()
        shutil.rmtree(folder, ignore_errors=True)


def has_redis() -> bool:
    """Say whether this machine has a Redis to start."""
    return shutil.which("redis-server") is not None


def _redis(port: int, folder: Path) -> "subprocess.Popen[bytes]":
    options = {"port": port, "bind": "127.0.0.1", "save": "", "dir": folder}
    command = ["redis-server", *(a for k, v in options.items() for a in (f"--{k}", str(v)))]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill(doomed: set[psutil.Process]) -> None:
    for process in doomed:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
