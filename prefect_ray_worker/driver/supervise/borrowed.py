"""`BorrowedSupervisor`: the supervisor of a run that a zygote has forked, instead of a child."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from prefect_ray_worker.driver.supervise.link import GuardLink, Order, Word
from prefect_ray_worker.driver.supervise.rendezvous import Rendezvous


class BorrowedSupervisor:
    """What the guard waits for when a zygote has forked the supervisor.

    Args:
        link: To the supervisor, which has been told to start.
    """

    def __init__(self, link: GuardLink) -> None:
        self._link = link

    def ended(self) -> int | None:
        """Return the engine's exit code, negative for a signal; None while it runs."""
        for word, value in self._link.words():
            if word == Word.ENDED:
                return value
        return -signal.SIGKILL if self._link.is_closed else None

    def terminate(self) -> None:
        """Hand a SIGTERM on to the engine."""
        self._link.say(Word.TERMINATE)


def borrow_supervisor(
    rendezvous: Rendezvous, fingerprint: str, arguments: Sequence[str]
) -> BorrowedSupervisor | None:
    """Return a supervisor that starts the engine of a run at once.

    Args:
        rendezvous: Where zygotes are found.
        fingerprint: Of this process.
        arguments: Of the engine.

    Returns:
        None where there is no zygote, or it does not answer: nothing has been started then.
    """
    connection = rendezvous.connect(fingerprint)
    if connection is None:
        return None
    link = GuardLink(connection)
    try:
        os.umask(mask := os.umask(0))
        link.send_order(Order(arguments, dict(os.environ), str(Path.cwd()), mask))
    except OSError:
        link.close()
        return None
    if link.hears(Word.READY):
        link.say(Word.GO)
        # One that does not answer may still start the engine. One that has gone never will.
        if link.hears(Word.STARTS) or not link.is_closed:
            link.wake()
            return BorrowedSupervisor(link)
    link.close()
    return None
