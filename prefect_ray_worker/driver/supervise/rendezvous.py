"""`Rendezvous`: the folder in which the zygotes of one Ray node are found.

Each has a socket there, named after its fingerprint, and a lock that it holds while it lives.
"""

import fcntl
import os
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from prefect_ray_worker.driver.supervise.link import peer_of

_CONNECT_SECONDS = 0.5


class Rendezvous:
    """The folder of the zygotes that one user has on one node; it is made if it does not exist.

    Args:
        raylet: The process of the Ray node.
        root: Where the folder of the user is; that of temporary files by default.

    Raises:
        OSError: It cannot be made, or somebody else can write to it.
    """

    def __init__(self, raylet: int, root: Path | None = None) -> None:
        user = os.getuid()
        private = (root or Path(tempfile.gettempdir())) / f"prefect-ray-worker-{user}"
        private.mkdir(mode=0o700, exist_ok=True)
        found = private.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077 or found.st_uid != user:
            raise PermissionError(f"{private} is not a private folder of this user")
        self._folder = private / str(raylet)
        self._folder.mkdir(exist_ok=True)

    def connect(self, fingerprint: str) -> socket.socket | None:
        """Return a connection to the zygote with a fingerprint; None if there is none."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_CONNECT_SECONDS)
            connection.connect(self._path(fingerprint))
            if peer_of(connection)[1] == os.getuid():
                return connection
        except OSError:
            pass
        connection.close()
        return None

    def listen(self, fingerprint: str) -> tuple[socket.socket, int] | None:
        """Become the zygote with a fingerprint.

        Returns:
            A listening socket, and the lock: an open file. None if there is one already.
        """
        path = self._path(fingerprint)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_ino != Path(f"{path}.lock").stat().st_ino:
                raise BlockingIOError("the zygote that had it has left meanwhile")
        except OSError:
            os.close(lock)
            return None
        Path(path).unlink(missing_ok=True)  # of one that was killed
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(16)
        return listener, lock

    def leave(self, fingerprint: str) -> None:
        """Be found no more. Only the zygote with that fingerprint may call it, and only once.

        Afterwards the place can be that of another one.
        """
        for path in (self._path(fingerprint), f"{self._path(fingerprint)}.lock"):
            with suppress(OSError):
                Path(path).unlink()
        with suppress(OSError):
            self._folder.rmdir()  # if it is empty

    def used(self, fingerprint: str) -> None:
        """Note that a zygote has been used just now."""
        with suppress(OSError):
            os.utime(self._path(fingerprint))

    def fingerprints(self) -> list[str]:
        """Return those with a socket, the one that was used longest ago first."""
        found: list[tuple[float, str]] = []
        with suppress(OSError):
            for path in self._folder.iterdir():
                with suppress(OSError):
                    if stat.S_ISSOCK(path.lstat().st_mode):
                        found.append((path.stat().st_mtime, path.name))
        return [name for _, name in sorted(found)]

    def _path(self, fingerprint: str) -> str:
        return str(self._folder / fingerprint)
