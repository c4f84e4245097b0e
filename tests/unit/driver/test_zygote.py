"""A zygote and runs that ask it: at the same moment, and with a SIGTERM at the worst one.

Guards, supervisors and engines are real processes. The engines import no Prefect: they do what
the test says.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import psutil
import pytest

from prefect_ray_worker.driver.supervise.link import GuardLink, Word
from prefect_ray_worker.driver.supervise.rendezvous import Rendezvous
from tests.integration.processes import zygotes_at
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are zygotes on Linux only")

NOT_BORROWED = 99

ZYGOTE = """
import logging, os, signal, sys, time
from pathlib import Path
from prefect_ray_worker.driver.supervise.zygote import stay_behind

folder, raylet = Path(sys.argv[1]), int(sys.argv[2])
fork = os.fork

def log_at(moment):
    if os.environ.get("LOGS_FROM") == moment:
        logging.getLogger().addHandler(logging.FileHandler(folder / "log"))

def fork_if_possible():
    if (folder / "full").exists():
        raise BlockingIOError("Resource temporarily unavailable")
    return fork()

os.fork = fork_if_possible
log_at("import")
arguments = stay_behind("f", raylet, 300.0, prepare=lambda: log_at("preparation"))
if arguments is None:
    sys.exit()
name, attempt = arguments
(folder / f"{name}.new").write_text(f"{os.getpid()} {attempt}")
(folder / f"{name}.new").rename(folder / f"{name}.begun")
while not (folder / f"{name}.go").exists():
    time.sleep(0.01)
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
(folder / f"{name}.heard").write_text(" ".join(heard))
os._exit(0)
"""

GUARD = """
import signal, sys
from pathlib import Path
from prefect_ray_worker.driver.supervise import supervisor
from prefect_ray_worker.driver.supervise.borrowed import borrow_supervisor
from prefect_ray_worker.driver.supervise.rendezvous import Rendezvous

signal.pthread_sigmask(signal.SIG_BLOCK, supervisor.HANDLED)
print("asks", flush=True)
watched = borrow_supervisor(Rendezvous(int(sys.argv[2]), Path(sys.argv[1])), "f", sys.argv[3:])
sys.exit(99 if watched is None else supervisor._wait(watched, lambda: False))
"""


class Node:
    """A node whose raylet is this process, with one zygote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rendezvous = Rendezvous(os.getpid(), folder)
        self._guards: list[subprocess.Popen[str]] = []
        self.leave_zygote()

    def leave_zygote(self, **env: str) -> None:
        """Start a process that leaves one if it can, and wait until it listens or has ended."""
        self._python(ZYGOTE, TMPDIR=str(self.folder), **env).communicate()

    def _python(self, script: str, *arguments: str, **env: str) -> "subprocess.Popen[str]":
        place = (str(self.folder), str(os.getpid()))
        return subprocess.Popen(
            [sys.executable, "-c", script, *place, *arguments],
            env={**os.environ, **env}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    async def zygote(self) -> psutil.Process:
        (pid,) = await wait_until(
            partial(zygotes_at, self.rendezvous), timeout=10, description="a zygote that listens"
        )
        return psutil.Process(pid)

    def ask(self, name: str) -> "subprocess.Popen[str]":
        """Start the guard of a run, and return it when it asks for a supervisor."""
        guard = self._python(GUARD, name, f"attempt of {name}")
        self._guards.append(guard)
        assert guard.stdout is not None
        assert guard.stdout.readline() == "asks\n"
        return guard

    async def engine(self, name: str) -> psutil.Process:
        """Wait for the engine of a run, which holds before it handles SIGTERM."""
        begun = self.folder / f"{name}.begun"
        await wait_until(begun.exists, timeout=10, description=f"the engine of {name}")
        pid, attempt = begun.read_text().split(maxsplit=1)
        assert attempt == f"attempt of {name}"
        return psutil.Process(int(pid))

    def let(self, name: str) -> None:
        (self.folder / f"{name}.go").touch()

    def heard(self, name: str) -> str:
        return (self.folder / f"{name}.heard").read_text()

    def close(self) -> None:
        for pid in zygotes_at(self.rendezvous):
            os.kill(pid, signal.SIGKILL)
        for guard in self._guards:
            guard.kill()
            guard.communicate()


@pytest.fixture
def node() -> Iterator[Node]:
    # Short, because of the path of the socket.
    folder = Path(tempfile.mkdtemp(prefix="prwz-", dir="/tmp"))
    made = Node(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def waits_with_sigterm(process: psutil.Process) -> bool:
    """Return whether a process has got a SIGTERM that it does not take yet."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    pending = next(line for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(pending.split()[1], 16) & 1 << (signal.SIGTERM - 1))


async def test_two_runs_that_ask_at_the_same_moment_get_an_engine_each(node: Node) -> None:
    zygote = await node.zygote()
    zygote.suspend()
    guards = [node.ask(name) for name in ("one", "two")]
    zygote.resume()
    engines = [await node.engine(name) for name in ("one", "two")]
    assert engines[0].pid != engines[1].pid
    supervisors = [engine.parent() for engine in engines]
    assert None not in supervisors
    assert len({s.pid for s in supervisors if s}) == 2
    assert {s.ppid() for s in supervisors if s} == {zygote.pid}
    node.let("one")
    assert guards[0].wait(10) == 0
    assert not has_ended(engines[1]), "the end of one run is no other's"
    node.let("two")
    assert guards[1].wait(10) == 0
    await wait_until(lambda: not zygote.children(), timeout=10, description="no children")


async def test_a_sigterm_right_after_the_fork_waits_until_it_is_handled(node: Node) -> None:
    """It would have killed the engine, and the run would have been Crashed."""
    await node.zygote()
    guard = node.ask("run")
    engine = await node.engine("run")
    guard.send_signal(signal.SIGTERM)
    await wait_until(
        lambda: waits_with_sigterm(engine), timeout=10, description="the SIGTERM at the engine"
    )
    node.let("run")
    assert guard.wait(10) == 0
    assert node.heard("run") == "SIGTERM"


async def test_a_zygote_that_is_asked_to_leave_ends_at_once(node: Node) -> None:
    """It took up to a minute, its next look."""
    zygote = await node.zygote()
    await anyio.sleep(0.3)  # to find it was a look at it; from now on it waits
    zygote.terminate()
    await wait_until(lambda: has_ended(zygote), timeout=5, description="the zygote's end")
    assert node.ask("late").wait(10) == NOT_BORROWED


async def test_a_zygote_that_is_asked_to_leave_waits_for_its_runs(node: Node) -> None:
    zygote = await node.zygote()
    guard = node.ask("run")
    await node.engine("run")
    zygote.terminate()
    assert node.ask("late").wait(10) == NOT_BORROWED
    assert not has_ended(zygote)
    node.let("run")
    assert guard.wait(10) == 0
    assert node.heard("run") == ""
    await wait_until(lambda: has_ended(zygote), timeout=5, description="the zygote's end")


async def test_a_zygote_that_waits_for_its_runs_leaves_its_place_to_the_next(node: Node) -> None:
    """At its end it took away the socket of the next one, which nobody found any more."""
    zygote = await node.zygote()
    guard = node.ask("run")
    await node.engine("run")
    zygote.terminate()
    await wait_until(
        lambda: node.ask("late").wait(10) == NOT_BORROWED, timeout=5, description="it to leave"
    )
    node.leave_zygote()
    following = await node.zygote()
    assert following != zygote
    node.let("run")
    assert guard.wait(10) == 0
    await wait_until(lambda: has_ended(zygote), timeout=5, description="the first one's end")
    assert await node.zygote() == following


async def test_a_zygote_that_cannot_fork_is_passed_over_and_remains(node: Node) -> None:
    """It went on as the engine of the run that had left it behind."""
    zygote = await node.zygote()
    (node.folder / "full").touch()
    assert node.ask("one").wait(10) == NOT_BORROWED
    (node.folder / "full").unlink()
    guard = node.ask("two")
    await node.engine("two")
    assert await node.zygote() == zygote
    node.let("two")
    assert guard.wait(10) == 0


@pytest.mark.parametrize("moment", ["import", "preparation"])
async def test_a_process_with_an_open_log_file_leaves_no_zygote(node: Node, moment: str) -> None:
    """In a fork, the handler would have written into the file that had got the number of its own.

    Prefect's logging configuration can have such a handler.
    """
    first = await node.zygote()
    first.kill()
    await wait_until(lambda: has_ended(first), timeout=5, description="the first one's end")
    node.leave_zygote(LOGS_FROM=moment)
    assert (node.folder / "log").exists()
    assert not zygotes_at(node.rendezvous)


async def test_a_supervisor_that_ends_before_it_starts_the_engine_is_replaced(node: Node) -> None:
    """The run was Crashed by a SIGKILL that nobody had sent."""
    (await node.zygote()).kill()
    place = None
    while place is None:
        place = node.rendezvous.listen("f")
    listener, lock = place
    guard = node.ask("run")
    with listener:
        connection = listener.accept()[0]
        link = GuardLink(connection)
        _, files = link.receive_order()
        for file in (lock, *files):
            os.close(file)
        link.say(Word.READY)
        assert connection.recv(16, socket.MSG_PEEK) == b"go\n"
        link.close()
    assert guard.wait(10) == NOT_BORROWED
