"""A Prefect server that can be killed and started again with what it knew."""

import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.ports import free_port
from tests.prefect_server import prefect_server


class KillableServer:
    """A Prefect server at one address.

    Args:
        home: Its PREFECT_HOME.
        in_memory: Whether it forgets all when it is killed; it is the quicker for it.
    """

    def __init__(self, home: Path, *, in_memory: bool) -> None:
        self._in_memory = in_memory
        self._home = home
        self._port = free_port()
        self._running = ExitStack()
        self._pid = 0

    @property
    def api_url(self) -> str:
        """What PREFECT_API_URL has to be."""
        return f"http://127.0.0.1:{self._port}/api"

    def start(self) -> None:
        """Start it, or start it again."""
        database = f"sqlite+aiosqlite:///{self._home}/prefect.db"
        extra = {} if self._in_memory else {"PREFECT_API_DATABASE_CONNECTION_URL": database}
        server = self._running.enter_context(prefect_server(self._home, extra, port=self._port))
        self._pid = server.pid

    def kill(self) -> None:
        """Kill it, in the middle of whatever it does."""
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        self._running.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._running.close()
