"""`GuardLink`: between the guard of a run and the supervisor that a zygote has forked for it.

They are no parent and child, so the kernel tells neither of the other's death. The socket does: it
closes with the process, and wakes the other side with a SIGIO.
"""

import fcntl
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum

_ANSWER_SECONDS = 2.0
_LENGTH = struct.Struct("!I")
_LONGEST = 16 * 1024 * 1024
_STREAMS = (0, 1, 2)
_CREDENTIALS = struct.Struct("3i")


class Word(Enum):
    """What the two sides say to each other."""

    READY = "ready"
    """The supervisor is there, and waits."""

    GO = "go"
    """Start the engine."""

    STARTS = "starts"
    """The supervisor starts it. A run whose supervisor has ended without this word can still be
    started in another way."""

    TERMINATE = "terminate"
    """Ray asks the run to end, as with SIGTERM."""

    ENDED = "ended"
    """The engine has ended, with the exit code behind it."""


@dataclass(frozen=True)
class Order:
    """What the processes of one run have to become.

    Attributes:
        arguments: Of the engine: the flow run's id and the attempt's.
        environment: All variables of the run.
        folder: The working folder.
        mask: Of the rights of new files.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    mask: int


class GuardLink:
    """One side of the connection.

    Args:
        connection: A connected Unix socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._unread = b""
        self._is_closed = False

    def send_order(self, order: Order) -> None:
        """Send what to become, with this process's own stdin, stdout and stderr.

        Raises:
            OSError: The other side has gone, or takes it too slowly.
        """
        text = json.dumps(asdict(order)).encode()
        self._socket.settimeout(_ANSWER_SECONDS)
        socket.send_fds(self._socket, [_LENGTH.pack(len(text))], _STREAMS)
        self._socket.sendall(text)

    def receive_order(self) -> tuple[Order, list[int]]:
        """Return the order and three open files, which the caller closes.

        Raises:
            OSError: The other side has gone, or sends it too slowly.
            ValueError: It is no order.
        """
        self._socket.settimeout(_ANSWER_SECONDS)
        head, files, _, _ = socket.recv_fds(self._socket, _LENGTH.size, len(_STREAMS))
        try:
            text = self._exactly(_length_in(head, len(files)))
            return Order(**json.loads(text)), list(files)
        except BaseException:
            for file in files:
                os.close(file)
            raise

    def _exactly(self, length: int) -> bytes:
        received = bytearray()
        while len(received) < length:
            part = self._socket.recv(length - len(received))
            if not part:
                raise ConnectionResetError("the order is cut off")
            received += part
        return bytes(received)

    def say(self, word: Word, value: int | None = None) -> None:
        """Send a word; do nothing where the other side has gone."""
        line = word.value if value is None else f"{word.value} {value}"
        try:
            self._socket.sendall(f"{line}\n".encode())
        except OSError:
            self._is_closed = True

    def hears(self, word: Word) -> bool:
        """Wait a moment for the next word; return whether it is this one."""
        self._socket.settimeout(_ANSWER_SECONDS)
        try:
            while b"\n" not in self._unread:
                part = self._socket.recv(64)
                if not part:
                    raise ConnectionResetError
                self._unread += part
        except TimeoutError:
            return False
        except OSError:
            self._is_closed = True
            return False
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace") == word.value

    def wake(self) -> None:
        """From now on, send this process a SIGIO when there is a word, or the other side has gone.

        Block the signal first: it ends a process that does not expect it.
        """
        self._socket.setblocking(False)
        number = self._socket.fileno()
        fcntl.fcntl(number, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(number, fcntl.F_GETFL)
        fcntl.fcntl(number, fcntl.F_SETFL, flags | os.O_ASYNC)

    def words(self) -> list[tuple[Word, int]]:
        """Return what has come since the last call, without waiting."""
        while not self._is_closed:
            try:
                part = self._socket.recv(4096)
            except BlockingIOError:
                break
            except OSError:
                part = b""
            self._is_closed = not part
            self._unread += part
        *lines, self._unread = self._unread.split(b"\n")
        heard: list[tuple[Word, int]] = []
        for line in lines:
            name, _, value = line.decode(errors="replace").partition(" ")
            heard.append((Word(name), int(value or 0)))
        return heard

    @property
    def is_closed(self) -> bool:
        """Whether the other side has gone, as far as this side has seen."""
        return self._is_closed

    def close(self) -> None:
        """Let the other side see that this one has gone."""
        self._socket.close()


def _length_in(head: bytes, files: int) -> int:
    length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else _LONGEST + 1
    if files != len(_STREAMS) or length > _LONGEST:
        raise ValueError("this is no order")
    return length


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return process and user at the other end, as the kernel knows them.

    Of a connection to a listening socket it is the process that began to listen.
    """
    size = _CREDENTIALS.size
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    process, user, _ = _CREDENTIALS.unpack(raw)
    return process, user
