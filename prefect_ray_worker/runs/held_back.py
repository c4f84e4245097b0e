"""`HeldBack`: scheduled runs that a worker could not claim, so that others are not kept waiting."""

from dataclasses import dataclass, field
from logging import Logger, LoggerAdapter
from uuid import UUID

import anyio

from prefect_ray_worker.shared.backoff import Backoff

_LONGEST_SECONDS = 120.0


@dataclass
class _Hold:
    backoff: Backoff = field(default_factory=lambda: Backoff(longest=_LONGEST_SECONDS))
    until: float = 0.0


class HeldBack:
    """Keeps runs whose submission failed out of the next polls, longer after each failure.

    Prefect gives the oldest runs first. With `--limit`, a run that fails at each poll would take
    the slot of all others at each poll.
    """

    def __init__(self) -> None:
        self._holds: dict[UUID, _Hold] = {}

    def __contains__(self, run_id: UUID) -> bool:
        hold = self._holds.get(run_id)
        return hold is not None and anyio.current_time() < hold.until

    def failed(
        self,
        run_id: UUID,
        why: str,
        log: "Logger | LoggerAdapter[Logger]",
        run_log: "Logger | LoggerAdapter[Logger]",
    ) -> None:
        """Hold a run back, longer than the last time.

        Args:
            run_id: The run.
            why: What failed; without a secret.
            log: Told of each failure.
            run_log: Told of the first failure.
        """
        self._drop_the_old()
        is_first = run_id not in self._holds
        hold = self._holds.setdefault(run_id, _Hold())
        wait = hold.backoff.next()
        hold.until = anyio.current_time() + wait
        log.warning(
            "The flow run %s stays scheduled; it is tried again in %.0f s: %s", run_id, wait, why
        )
        if is_first:
            run_log.warning(
                "This run stays scheduled; the worker tries again, less and less often: %s", why
            )

    def passed(self, run_id: UUID) -> None:
        """Forget the failures of a run."""
        self._holds.pop(run_id, None)

    def _drop_the_old(self) -> None:
        """Keep no notes about runs that no poll has shown for long: other workers have them."""
        oldest = anyio.current_time() - 2 * _LONGEST_SECONDS
        for run_id in [run_id for run_id, hold in self._holds.items() if hold.until < oldest]:
            del self._holds[run_id]
