"""`Termination`: one way in which a run is told to end, whoever asks and whatever it does.

Prefect ends a flow by an exception that its SIGTERM handler raises. But `ray.init()` replaces
that handler (Ray 2.60, `_private/worker.py`), and what a SIGTERM means, a cancellation or a
node that goes away, only the Prefect API can say. So the process keeps its own handler, lets
others believe that they have installed theirs, and decides in a background thread.

Standard library only: it has to be in place before anything else is imported.
"""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

Handler = Callable[[int, Any], Any] | int | None
Raise = Callable[[], None]
"""Raises in the main thread what ends the flow; returns to let the signal pass."""


class Termination:
    """Owns SIGTERM of this process. Create and `install` it in the main thread.

    Attributes:
        requested: Set when somebody asked this process to end.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        self._raise: Raise | None = None
        self._believed: Handler = signal.SIG_DFL
        self._signal = signal.signal
        self._getsignal = signal.getsignal

    def install(self) -> None:
        """Handle SIGTERM, and keep on handling it when others install handlers for it."""
        self._signal(signal.SIGTERM, self._on_signal)
        signal.signal = self._set
        signal.getsignal = self._get

    def deliver(self, raise_: Raise) -> None:
        """Interrupt the main thread, also in a blocking call, and let it raise.

        Args:
            raise_: Called in the main thread, in whatever it is doing.
        """
        self._raise = raise_
        signal.pthread_kill(_main_thread(), signal.SIGTERM)

    def withdraw(self) -> None:
        """Raise nothing any more: the flow has come to its end."""
        self._raise = None

    def _on_signal(self, number: int, frame: Any) -> None:
        raise_, self._raise = self._raise, None
        if raise_ is None:
            self.requested.set()
            return
        if callable(self._believed) and not _is_of_an_engine(self._believed):
            self._believed(number, frame)
        raise_()

    def _set(self, number: int, handler: Any) -> Any:
        if number != signal.SIGTERM:
            return self._signal(number, handler)
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("signal only works in main thread of the main interpreter")
        previous, self._believed = self._believed, handler
        return previous

    def _get(self, number: int) -> Any:
        return self._believed if number == signal.SIGTERM else self._getsignal(number)


def _is_of_an_engine(handler: Handler) -> bool:
    """Say whether Prefect or Ray has installed a handler: what those do is done otherwise here."""
    return getattr(handler, "__module__", "").partition(".")[0] in ("prefect", "ray")


def _main_thread() -> int:
    ident = threading.main_thread().ident
    if ident is None:
        os._exit(1)
    return ident
