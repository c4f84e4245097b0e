"""A TCP proxy between worker and head that fails on demand, as networks and ingresses do."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from enum import Enum

from tests.ports import free_port

_CHUNK = 65536


class Mode(Enum):
    """What the proxy does with what passes through it."""

    PASSES = "passes"
    HANGS = "takes connections and passes nothing on"
    HALVES = "passes requests on and breaks off in the middle of each answer"
    SWALLOWS = "passes requests on and breaks off before each answer"


class Proxy:
    """Stands before one port of this machine.

    Args:
        target: The port behind it.
    """

    def __init__(self, target: int) -> None:
        self._mode = Mode.PASSES
        self._moves = asyncio.Event()
        self._target = target
        self._port = free_port()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._holds_next = False
        self._held = asyncio.Event()
        self._released = asyncio.Event()

    @property
    def address(self) -> str:
        """Where a worker finds it."""
        return f"http://127.0.0.1:{self._port}"

    def become(self, mode: Mode) -> None:
        """Treat from now on each piece of data so, on connections that are open as well."""
        self._mode = mode
        if mode is Mode.HANGS:
            self._moves.clear()
        else:
            self._moves.set()

    async def mend(self) -> None:
        """Take connections, and pass all on."""
        self.become(Mode.PASSES)
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def cut(self) -> None:
        """Break off every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold_next_submission(self) -> None:
        """Keep the next submission of a job back until `release_submission`; others pass."""
        self._holds_next = True
        self._held.clear()
        self._released.clear()

    async def holds_one(self, seconds: float) -> None:
        """Wait until a submission is kept back."""
        async with asyncio.timeout(seconds):
            await self._held.wait()

    def release_submission(self) -> None:
        """Deliver what is kept back, also if nobody waits for an answer any more."""
        self._released.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._connect(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, to_head = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            async with asyncio.TaskGroup() as both:
                requests = both.create_task(_until_broken(self._pass_requests(reader, to_head)))
                answers = both.create_task(_until_broken(self._pass_answers(head, writer)))
                await asyncio.wait({requests, answers}, return_when=asyncio.FIRST_COMPLETED)
                requests.cancel()
                answers.cancel()
        finally:
            to_head.close()

    async def _pass_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(_CHUNK):
            held = self._holds_next and chunk.startswith(b"POST /api/jobs/ ")
            if held:
                self._holds_next = False
                self._held.set()
                await self._released.wait()
            await self._moves.wait()
            writer.write(chunk)
            await writer.drain()
            if held:
                # Its sender may have gone since: what it sent arrives all the same.
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        writer.write(await reader.read(_CHUNK))
                        await writer.drain()
                        await asyncio.sleep(1)

    async def _pass_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(_CHUNK):
            await self._moves.wait()
            if self._mode is Mode.SWALLOWS:
                return
            writer.write(chunk[: len(chunk) // 2] if self._mode is Mode.HALVES else chunk)
            await writer.drain()
            if self._mode is Mode.HALVES:
                return


async def _until_broken(passing: Coroutine[None, None, None]) -> None:
    with suppress(OSError):
        await passing


@asynccontextmanager
async def proxy(target: int) -> AsyncIterator[Proxy]:
    """Run a proxy before a port for as long as the context is open."""
    between = Proxy(target)
    await between.mend()
    try:
        yield between
    finally:
        between.release_submission()
        await between.cut()
