"""`stay_behind`: leaves a process behind from which the engines of later runs are forked.

The engine of a cold start calls it right after its imports: before any thread, socket or signal
handler exists, and before anything of the run has been read. The zygote does nothing but fork. It
ends with its raylet, or after idle minutes.

Each run gets a supervisor of its own from it, whose fork is the engine. The kernel kills an engine
whose supervisor dies, and the zygote kills what both leave behind.
"""

import gc
import importlib
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from prefect_ray_worker.driver.supervise import processes as descendants
from prefect_ray_worker.driver.supervise.link import GuardLink, Order, Word, peer_of
from prefect_ray_worker.driver.supervise.rendezvous import Rendezvous
from prefect_ray_worker.driver.supervise.supervisor import HANDLED, attend, is_released
from prefect_ray_worker.driver.supervise.title import show_as

_AT_MOST = 4
_LOOK_SECONDS = 60.0
_NULL = "/dev/null"


def stay_behind(
    fingerprint: str, raylet: int, idle_seconds: float, *, prepare: Callable[[], None]
) -> Sequence[str] | None:
    """Leave a zygote behind, if this process can be forked.

    Args:
        fingerprint: Of this process, and of those that will be forked.
        raylet: The process of the Ray node, with which the zygote ends.
        idle_seconds: After so long without a run it ends.
        prepare: Called in the zygote before it is found.

    Returns:
        None in the process that called it. The call also returns in each engine that is forked
        later: there with the engine's own arguments.
    """
    if not _can_be_forked():
        return None
    sys.stdout.flush()
    sys.stderr.flush()
    intermediate = os.fork()
    if intermediate:
        os.waitpid(intermediate, 0)
        return None
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        prepare()
        if not _can_be_forked():
            os._exit(1)
        gc.freeze()
        zygote = _Zygote(fingerprint, idle_seconds, raylet)
        arguments = zygote.serve()
    except BaseException:
        # Anything else would return in this process, and it would go on as the engine of the run
        # that has left it behind.
        os._exit(1)
    return arguments


def _can_be_forked() -> bool:
    return not _has_threads() and not _has_files()


def _has_threads() -> bool:
    # Of Python or not: a lock that one of them holds would never be free in a fork.
    return len([*Path("/proc/self/task").iterdir()]) > 1


def _has_files() -> bool:
    # An import has opened them. A zygote must not keep them, because they can be the run's own. Nor
    # can it close them: a log handler would write into the file that gets its number in a fork.
    given = {"0", "1", "2", os.environ.get(descendants.LIFELINE)}
    found = [*Path("/proc/self/fd").iterdir()]
    # Only the handle by which the folder was read is no link any more.
    return any(file.name not in given and file.is_symlink() for file in found)


class _Zygote:
    def __init__(self, fingerprint: str, idle_seconds: float, raylet: int) -> None:
        self._fingerprint = fingerprint
        self._idle_seconds = idle_seconds
        self._raylet = os.pidfd_open(raylet)
        self._rendezvous = Rendezvous(raylet)
        place = self._rendezvous.listen(fingerprint)
        if place is None:
            os._exit(0)
        self._listener, self._lock = place
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._raylet, selectors.EVENT_READ)
        # A signal alone ends no wait: Python waits on for what is left of the time.
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._supervisors: dict[int, int] = {}  # process by handle
        self._is_found = True
        self._forget_the_run()
        descendants.notice_death_of_parent()
        descendants.adopt_orphans()
        self._make_room()

    def _forget_the_run(self) -> None:
        gc.disable()
        lifeline = os.environ.get(descendants.LIFELINE)
        if lifeline is not None:
            os.close(int(lifeline))
        null = os.open(_NULL, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        os.chdir("/")
        os.environ.clear()
        show_as([sys.executable, "-m", "prefect_ray_worker.driver", "zygote"], {})
        signal.set_wakeup_fd(self._waker)
        signal.signal(signal.SIGTERM, self._retire)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _make_room(self) -> None:
        """Ask the zygotes that were used longest ago to end, so that few of them hold memory."""
        others = [name for name in self._rendezvous.fingerprints() if name != self._fingerprint]
        for fingerprint in others[: max(0, len(others) + 1 - _AT_MOST)]:
            connection = self._rendezvous.connect(fingerprint)
            if connection is not None:
                with connection, suppress(OSError):
                    process = peer_of(connection)[0]
                    # 0: of another container that has the same folder of temporary files.
                    if process > 0:
                        os.kill(process, signal.SIGTERM)

    def _retire(self, *_: object) -> None:
        """Take no more runs, and end when those that are there have ended."""
        self._leave()
        self._idle_seconds = 0.0

    def _leave(self) -> None:
        if self._is_found:
            self._is_found = False
            self._rendezvous.leave(self._fingerprint)

    def serve(self) -> Sequence[str]:
        """Fork supervisors and engines; return in an engine only, with its arguments."""
        used = time.monotonic()
        while self._supervisors or time.monotonic() - used < self._idle_seconds:
            for key, _ in self._selector.select(min(max(self._idle_seconds, 1), _LOOK_SECONDS)):
                if key.fd == self._woken:
                    os.read(self._woken, 64)
                    continue
                used = time.monotonic()
                if key.fd == self._raylet:
                    self._end()
                if key.fd in self._supervisors:
                    self._bury(key.fd)
                    continue
                arguments = self._answer()
                if arguments is not None:
                    return arguments
        return self._end()

    def _close(self) -> None:
        # As objects, not by number: an object that is freed later would close the file that has
        # got its number meanwhile.
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._listener.close()
        for file in (self._raylet, self._lock, self._woken, self._waker, *self._supervisors):
            os.close(file)

    def _end(self) -> NoReturn:
        self._leave()
        os._exit(0)

    def _bury(self, handle: int) -> None:
        self._selector.unregister(handle)
        os.close(handle)
        with suppress(ChildProcessError):
            os.waitpid(self._supervisors.pop(handle), 0)
        descendants.kill_descendants(spare=self._supervisors.values())

    def _answer(self) -> Sequence[str] | None:
        """Fork a supervisor for the run that has connected; return None in this process."""
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return None
        link = GuardLink(connection)
        try:
            if peer_of(connection)[1] != os.getuid():
                raise PermissionError
            order, files = link.receive_order()
        except (OSError, ValueError, TypeError):
            link.close()  # a look at who listens, or a run that has ended meanwhile
            return None
        if self._is_found:
            self._rendezvous.used(self._fingerprint)
        # A signal to the new process is the run's, and must not reach the zygote's handler in it.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            supervisor = os.fork()
        except OSError:
            supervisor = None  # no process can be made now: the guard sees the link close
        if supervisor == 0:
            self._close()
            return _supervise(link, order, files)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        link.close()
        for file in files:
            os.close(file)
        if supervisor is None:
            return None
        handle = os.pidfd_open(supervisor)
        self._supervisors[handle] = supervisor
        self._selector.register(handle, selectors.EVENT_READ)
        return None


def _supervise(link: GuardLink, order: Order, files: Sequence[int]) -> Sequence[str]:
    """Become the supervisor of a run, and start its engine; return in the engine only.

    The signals in `HANDLED` are blocked.
    """
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        descendants.notice_death_of_parent()
        descendants.adopt_orphans()
        _become(order, files)
        link.say(Word.READY)
        if not link.hears(Word.GO):
            os._exit(code)
        link.say(Word.STARTS)
        link.wake()
        supervisor = os.getpid()
        engine = os.fork()
        if engine == 0:
            descendants.die_with_parent(supervisor)
            link.close()
            return _start_engine(order)
        code = attend(engine, order.arguments, lambda: is_released(link), group=0)
        link.say(Word.ENDED, code)
    except BaseException:
        os._exit(code)
    os._exit(0)


def _become(order: Order, files: Sequence[int]) -> None:
    for stream, file in enumerate(files):
        os.dup2(file, stream)
        os.close(file)
    os.umask(order.mask)
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    _show_as("prefect_ray_worker.driver", order)


def _start_engine(order: Order) -> Sequence[str]:
    os.setpgid(0, 0)
    # The engine unblocks SIGTERM once it handles it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED - {signal.SIGTERM})
    _show_as("prefect_ray_worker.driver.engine", order)
    sys.argv[1:] = order.arguments
    # Folders of the path may have come or changed since they were looked at.
    importlib.invalidate_caches()
    gc.enable()
    return order.arguments


def _show_as(module: str, order: Order) -> None:
    # First what tells runs apart.
    first = sorted(order.environment, key=lambda name: not name.startswith("PREFECT__"))
    environment = {name: order.environment[name] for name in first}
    show_as([sys.executable, "-m", module, *order.arguments], environment)
