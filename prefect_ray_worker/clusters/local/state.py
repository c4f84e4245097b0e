"""The files that the workers of one Prefect home share to coordinate their local Ray.

* `lock`: held while a worker finds, starts or stops the cluster; never deleted
* `in_use`: locked (shared) by each worker that uses the cluster; never deleted
* `cluster.json`: the `ClusterRecord` of the Ray that is running or starting
* `auth_token`: the bearer token of that Ray, readable by this user only
* `ray.log`: output of the last `ray start`, kept after Ray stops
"""

import fcntl
import json
import os
import platform
import re
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import anyio

from prefect_ray_worker.clusters.local.processes import ProcessIdentity
from prefect_ray_worker.errors import LocalClusterError

_LOCK_POLL_SECONDS = 0.1
_TAIL_BYTES = 16 * 1024


def state_directory(prefect_home: Path) -> Path:
    """Return the state directory of this machine. Several machines can share a Prefect home."""
    host = re.sub(r"[^A-Za-z0-9_.-]", "_", platform.node()) or "localhost"
    return prefect_home / "ray-worker" / host


@dataclass(frozen=True)
class ClusterRecord:
    """What a worker needs to use or clean up a Ray that another worker started.

    Attributes:
        pid: Process id of `ray start --block`.
        birth: Start time of that process; see `ProcessIdentity`.
        address: Address of the dashboard.
        agent_port: Port of the head's agent, which starts the jobs.
        token_path: The file with the bearer token.
        temp_dir: The directory for all files that Ray writes; also the value of the marker.
    """

    pid: int
    birth: float
    address: str
    agent_port: int
    token_path: str
    temp_dir: str

    @property
    def leader(self) -> ProcessIdentity:
        """Identity of the `ray start` process."""
        return ProcessIdentity(self.pid, self.birth)

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Read a record. Return None if it is incomplete or from an earlier release."""
        try:
            values = json.loads(text)
            return cls(
                pid=int(values["pid"]),
                birth=float(values["birth"]),
                address=str(values["address"]),
                agent_port=int(values["agent_port"]),
                token_path=str(values["token_path"]),
                temp_dir=str(values["temp_dir"]),
            )
        except (ValueError, TypeError, KeyError):
            return None


class StateDirectory:
    """One state directory. All methods except `locked` block briefly on the disk.

    Args:
        path: Path of the directory; `prepare` creates it with access for this user only.
    """

    def __init__(self, path: Path) -> None:
        # Child processes have another working directory, so a relative path would not work there.
        self.path = path.absolute()
        self.log_path = self.path / "ray.log"
        self.token_path = self.path / "auth_token"
        self._record_path = self.path / "cluster.json"
        self._in_use = self.path / "in_use"

    def prepare(self) -> None:
        """Create the directory.

        Raises:
            LocalClusterError: The directory cannot be created or written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.path / "lock").touch(mode=0o600)
            self._in_use.touch(mode=0o600)
        except OSError as exc:
            raise LocalClusterError(
                f"The local Ray keeps its state in {self.path}, which cannot be written "
                f"({exc}). Set PREFECT_HOME to a directory of this user."
            ) from exc

    @asynccontextmanager
    async def locked(self, within: float) -> AsyncGenerator[None, None]:
        """Hold the lock, which excludes other processes and other objects of this process.

        Args:
            within: How long to wait for the lock, in seconds.

        Raises:
            LocalClusterError: Another worker held the lock for that time.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            with anyio.move_on_after(within) as waiting:
                while not _try_lock(descriptor):  # noqa: ASYNC110 (no event spans processes)
                    await anyio.sleep(_LOCK_POLL_SECONDS)
            if waiting.cancelled_caught:
                raise LocalClusterError(
                    f"Another worker has been starting or stopping the local Ray for {within:.0f} "
                    f"s. See {self.log_path}; the lock is {self.path / 'lock'}."
                )
            yield
        finally:
            os.close(descriptor)

    def read_record(self) -> ClusterRecord | None:
        """Return the record, or None if it is missing or cannot be read."""
        try:
            return ClusterRecord.from_json(self._record_path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return None

    def write_record(self, record: ClusterRecord) -> None:
        """Replace the record atomically."""
        _write_private(self._record_path, json.dumps(asdict(record), indent=2) + "\n")

    def write_token(self) -> None:
        """Create a new token, in the format of `ray get-auth-token --generate`."""
        _write_private(self.token_path, secrets.token_hex(32))

    def forget(self) -> None:
        """Remove the record and the token of a Ray that has ended."""
        self._record_path.unlink(missing_ok=True)
        self.token_path.unlink(missing_ok=True)

    def mark_in_use(self) -> int:
        """Mark the cluster as in use, so that other processes do not stop it.

        Call this only while holding `locked`.

        Returns:
            A file descriptor. The mark lasts until it is closed or the process ends.
        """
        descriptor = os.open(self._in_use, os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor

    def is_in_use(self) -> bool:
        """Return whether a live process has marked the cluster as in use."""
        descriptor = os.open(self._in_use, os.O_RDWR | os.O_CLOEXEC)
        try:
            return not _try_lock(descriptor)
        finally:
            os.close(descriptor)

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of `ray.log`, or an empty string if it cannot be read."""
        with suppress(OSError), self.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = log.read().decode("utf-8", errors="replace")
            return "\n".join(text.splitlines()[-lines:])
        return ""


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_private(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
