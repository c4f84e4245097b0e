"""`Termination`: interrupts the flow of this process, and keeps SIGTERM for the driver.

Prefect ends a flow by an exception that its SIGTERM handler raises. But `ray.init()` replaces that
handler (Ray 2.60, `_private/worker.py`), and only the Prefect API knows what a SIGTERM means: a
cancellation, or a node that goes away. So the process keeps its own handler, records the handlers
that others install, and decides in a background thread.

Standard library only: it has to be in place before anything else is imported.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import CodeType
from typing import Any

Handler = Callable[[int, Any], Any] | int | None

# Names the signal with which Ray stops a job (`job_supervisor.py`, 2.60): SIGTERM or SIGINT.
_STOP_SIGNAL = "RAY_JOB_STOP_SIGNAL"

_native_handler = ctypes.pythonapi.PyOS_getsig
_native_handler.argtypes, _native_handler.restype = [ctypes.c_int], ctypes.c_void_p
_set_native_handler = ctypes.pythonapi.PyOS_setsig
_set_native_handler.argtypes = [ctypes.c_int, ctypes.c_void_p]
_set_native_handler.restype = ctypes.c_void_p


class Termination:
    """Owns SIGTERM of this process. Create and `install` it in the main thread.

    Attributes:
        requested: Set when a SIGTERM came from outside, or a SIGINT with which Ray stops jobs.
        delivered: Whether the main thread has been interrupted to end the flow.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.delivered = False
        self._ending: type[BaseException] | None = None
        self._withdrawn = False
        self._native: int | None = None
        self._believed: Handler = signal.SIG_DFL
        self._signal = signal.signal
        self._getsignal = signal.getsignal

    def install(self) -> None:
        """Handle SIGTERM, also after others install handlers for it.

        Handle SIGINT as well if Ray stops jobs with it. Otherwise it stays a KeyboardInterrupt,
        which libraries raise in the main thread on purpose (`_thread.interrupt_main`).
        """
        self._signal(signal.SIGTERM, self._on_signal)
        self._native = _native_handler(signal.SIGTERM)
        signal.signal = self._set
        signal.getsignal = self._get
        if os.environ.get(_STOP_SIGNAL) == "SIGINT":
            self._signal(signal.SIGINT, self._on_interrupt)
        # A forked child (`multiprocessing`) must not ignore the SIGTERM of its parent.
        os.register_at_fork(after_in_child=self._uninstall)

    def hold(self) -> None:
        """Put our handler back where native code has replaced it. Call it regularly.

        `ray.init()` installs one (Ray 2.60) that prints the stack and ends the process. Any thread
        can do this, unlike with `signal.signal`.
        """
        if _native_handler(signal.SIGTERM) != self._native:
            _set_native_handler(signal.SIGTERM, self._native)

    def deliver(self, ending: type[BaseException]) -> None:
        """Interrupt the main thread, also in a blocking call.

        Args:
            ending: Raised there, without arguments, in whatever it is doing.
        """
        self._ending = ending
        if not self._withdrawn:
            self.hold()
            signal.pthread_kill(_main_thread(), signal.SIGTERM)

    def withdraw(self) -> None:
        """Raise nothing from now on: the flow has ended."""
        self._withdrawn = True

    def _on_signal(self, number: int, frame: Any) -> None:
        ending, self._ending = self._ending, None
        if ending is None or self._withdrawn:
            self.requested.set()
            return
        self.delivered = True
        if callable(self._believed) and not _is_of_an_engine(self._believed):
            _call_loudly(self._believed, number, frame)
        if frame is not None and _is_of_ray(frame.f_globals.get("__name__")):
            # Only KeyboardInterrupt interrupts `ray.get` and `ray.wait`; they drop any other
            # exception of a handler (`check_signals`, Ray 2.60). So ours follows afterwards.
            follower = threading.Thread(target=self._follow, args=(ending,), daemon=True)
            follower.start()
            raise KeyboardInterrupt
        raise ending

    def _on_interrupt(self, *_: object) -> None:
        # Only the run's state says what the stop means. A KeyboardInterrupt would crash the flow.
        self.requested.set()

    def _follow(self, ending: type[BaseException]) -> None:
        main = _main_thread()
        while _is_running(self._on_signal.__code__, main):
            time.sleep(0)
        raise_in_thread(main, ending)

    def _uninstall(self) -> None:
        signal.signal, signal.getsignal = self._signal, self._getsignal
        believed = self._believed
        self._signal(signal.SIGTERM, signal.SIG_DFL if _is_of_an_engine(believed) else believed)
        if self._getsignal(signal.SIGINT) == self._on_interrupt:
            self._signal(signal.SIGINT, signal.default_int_handler)

    def _set(self, number: int, handler: Any) -> Any:
        if number != signal.SIGTERM:
            return self._signal(number, handler)
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("signal only works in main thread of the main interpreter")
        previous, self._believed = self._believed, handler
        return previous

    def _get(self, number: int) -> Any:
        return self._believed if number == signal.SIGTERM else self._getsignal(number)


def raise_in_thread(ident: int, exception: type[BaseException]) -> None:
    """Raise an exception in a thread as soon as it executes Python code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(exception))


def _is_of_an_engine(handler: Handler) -> bool:
    """Return whether Prefect or Ray installed a handler: the driver does its work instead."""
    return getattr(handler, "__module__", "").partition(".")[0] in ("prefect", "ray")


def _call_loudly(handler: Callable[[int, Any], Any], number: int, frame: Any) -> None:
    """Call a handler of the flow's; what it raises must not take the place of the flow's end."""
    try:
        handler(number, frame)
    except BaseException as exc:  # `sys.exit` is what handlers of SIGTERM usually end with
        name = type(exc).__name__
        said = f"The flow's handler of SIGTERM raised {name}. The flow is interrupted anyway.\n"
        if not isinstance(exc, SystemExit):
            said += "".join(traceback.format_exception(exc))
        # Not through `logging` or a stream: the signal may have interrupted one that holds a lock.
        with contextlib.suppress(OSError):
            os.write(2, said.encode(errors="backslashreplace"))


def _is_running(code: CodeType, ident: int) -> bool:
    frame = sys._current_frames().get(ident)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def _is_of_ray(module: object) -> bool:
    return str(module).partition(".")[0] == "ray"


def _main_thread() -> int:
    ident = threading.main_thread().ident
    if ident is None:
        os._exit(1)
    return ident
