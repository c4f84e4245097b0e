"""The files by which the workers of one Prefect home agree on their embedded Ray.

* `lock`: held while somebody looks, starts or stops; never deleted
* `cluster.json`: the `ClusterRecord` of the Ray that runs or is about to
* `auth_token`: its bearer token, for this user only
* `users/<pid>-<birth>-<random>`: one empty file for each user in a live process
* `ray.log`: output of the last `ray start`, kept after it stops
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
    """Return where this machine's state belongs: a home may be shared between machines."""
    host = re.sub(r"[^A-Za-z0-9_.-]", "_", platform.node()) or "localhost"
    return prefect_home / "ray-worker" / host


@dataclass(frozen=True)
class ClusterRecord:
    """What a later process needs to use, or to clean up, a Ray that another one started.

    Attributes:
        pid: Process id of `ray start --block`.
        birth: When that process started; see `ProcessIdentity`.
        address: Address of the dashboard.
        agent_port: Port of the head's agent, which starts the jobs.
        token_path: The file with the bearer token.
        temp_dir: The directory that holds everything Ray writes, and the value of the marker.
    """

    pid: int
    birth: float
    address: str
    agent_port: int
    token_path: str
    temp_dir: str

    @property
    def leader(self) -> ProcessIdentity:
        """The `ray start` process."""
        return ProcessIdentity(self.pid, self.birth)

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Read a record, or return None for a file that holds none (cut short, or older)."""
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
    """One state directory. Its methods block briefly on the disk; only `locked` is async.

    Args:
        path: The directory; created on first use, for this user only.
    """

    def __init__(self, path: Path) -> None:
        # Children run elsewhere, so a relative path would mean another file to them.
        self.path = path.absolute()
        self.log_path = self.path / "ray.log"
        self.token_path = self.path / "auth_token"
        self._record_path = self.path / "cluster.json"
        self._users = self.path / "users"

    def prepare(self) -> None:
        """Create the directory.

        Raises:
            LocalClusterError: It cannot be created or written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._users.mkdir(mode=0o700, exist_ok=True)
            (self.path / "lock").touch(mode=0o600)
        except OSError as exc:
            raise LocalClusterError(
                f"The local Ray keeps its state in {self.path}, which cannot be written "
                f"({exc}). Set PREFECT_HOME to a directory of this user."
            ) from exc

    @asynccontextmanager
    async def locked(self, within: float) -> AsyncGenerator[None, None]:
        """Hold the lock between processes (and between objects of one process).

        Args:
            within: Seconds to wait for it.

        Raises:
            LocalClusterError: Somebody else held it all that time.
        """
        # The calls below return at once: a thread would only make the lock easier to lose.
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
        """Return the record, or None if there is none that can be read."""
        try:
            return ClusterRecord.from_json(self._record_path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return None

    def write_record(self, record: ClusterRecord) -> None:
        """Replace the record in one step."""
        _write_private(self._record_path, json.dumps(asdict(record), indent=2) + "\n")

    def write_token(self) -> None:
        """Create a new token in the format that `ray get-auth-token --generate` uses."""
        _write_private(self.token_path, secrets.token_hex(32))

    def forget(self) -> None:
        """Remove the record and the token of a Ray that is gone."""
        self._record_path.unlink(missing_ok=True)
        self.token_path.unlink(missing_ok=True)

    def add_user(self) -> Path:
        """Register a user in this process and return the file that stands for it."""
        me = ProcessIdentity.of(os.getpid())
        user = self._users / f"{me.pid}-{me.birth}-{secrets.token_hex(4)}"
        user.touch(mode=0o600)
        return user

    def remove_user(self, user: Path) -> None:
        """Take a registration back; a second time does nothing."""
        user.unlink(missing_ok=True)

    def has_users(self) -> bool:
        """Whether a live process uses the cluster; registrations of dead ones are removed."""
        alive = False
        for user in list(self._users.iterdir()):
            if _is_alive(user.name):
                alive = True
            else:
                user.unlink(missing_ok=True)
        return alive

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of `ray.log`, or an empty string without one."""
        with suppress(OSError), self.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = log.read().decode("utf-8", errors="replace")
            return "\n".join(text.splitlines()[-lines:])
        return ""


def _is_alive(user: str) -> bool:
    pid, _, rest = user.partition("-")
    birth, _, _ = rest.partition("-")
    try:
        return ProcessIdentity(int(pid), float(birth)).is_alive()
    except ValueError:
        return False


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
