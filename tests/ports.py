"""Free ports, so that the suite can run twice at once."""

import random
import socket
from contextlib import ExitStack

# Below those that systems give to outgoing connections (from 32768 on Linux, 49152 elsewhere). One
# of those may be a connection's by the time that somebody listens there: a Ray takes seconds.
_FIRST, _LAST = 20_000, 32_000
_TRIES = 1_000


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return different free ports: all are held until the last is known."""
    with ExitStack() as held:
        ports: list[int] = []
        for _ in range(_TRIES):
            holder = held.enter_context(socket.socket())
            try:
                holder.bind(("127.0.0.1", random.randint(_FIRST, _LAST)))
            except OSError:
                continue
            ports.append(holder.getsockname()[1])
            if len(ports) == count:
                return ports
    raise RuntimeError(f"no {count} free ports from {_FIRST} to {_LAST}")
