"""Keeps Python's full garbage collections short in a worker that follows very many runs.

A full collection looks at every container that there is, and nothing else happens meanwhile: 0.15 s
with a thousand runs. What a run holds has no cycles and goes with its last reference, so there is
nothing in it to look for (Python 3.11, Prefect 3.8.8).
"""

import gc

_MANY = 200


def spare_what_is_imported() -> None:
    """Leave what is there now, which stays, out of all later collections."""
    gc.freeze()


class SparedRuns:
    """Leaves what runs hold out of later collections, once there are many."""

    def __init__(self) -> None:
        self._since = 0

    def one_more(self, present: int) -> None:
        """Take note that one more run is followed.

        Not done for each run, as what is otherwise there at that moment is left out as well: a few
        open connections, which do have cycles and will not be freed, some kB for each run.

        Args:
            present: How many are.
        """
        self._since += 1
        if present >= _MANY and self._since >= _MANY:
            self._since = 0
            gc.collect(1)
            gc.freeze()
