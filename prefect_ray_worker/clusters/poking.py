"""`Poker`: has a head that was away look at its jobs again.

The agent of a head begins to watch over the jobs of the cluster with the first request that
submits, stops or deletes one (`job_agent.py`, Ray 2.60). Reading does not count. After a head has
come back with its memory, a job whose supervisor has died therefore stays RUNNING or PENDING for
as long as nobody asks for such a thing.
"""

import logging

import anyio

from prefect_ray_worker.clusters.observation import Observation, Seen, Unreachable
from prefect_ray_worker.errors import JobAlreadyExists, RequestRejected
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import JobSubmitRequest

# A submission waits up to 10 s for an agent; what has been sent has its effect all the same.
_POKE_SECONDS = 5.0

_log = logging.getLogger("prefect.workers.ray.watching")


class Poker:
    """Pokes the head of one cluster once for each time that it may have been away.

    Args:
        client: The cluster.
    """

    def __init__(self, client: JobsClient) -> None:
        self._client = client
        self._in_doubt = False
        self._goes_on: str | None = None

    def doubt(self) -> None:
        """Take note that the head may have been started again since it was last asked."""
        self._in_doubt = True

    def take_note(self, submission_id: str, observation: Observation) -> None:
        """Take note of what was seen of a job."""
        match observation:
            case Unreachable():
                self.doubt()
            case Seen(details) if not details.is_terminal:
                self._goes_on = submission_id
            case _:
                if self._goes_on == submission_id:
                    self._goes_on = None

    async def poke_if_in_doubt(self) -> None:
        """Submit a job under the id of one that the cluster has just shown.

        Ray refuses it, as the id is taken, after it has begun to watch over the others. Should
        the other job be gone by then, the new one does nothing: it is `true`. A stop would
        do as well, but only on a job that has ended, and there may be none.
        """
        if not self._in_doubt or self._goes_on is None:
            return
        request = JobSubmitRequest(
            entrypoint="true", submission_id=self._goes_on, runtime_env={}, metadata={}
        )
        scope = anyio.move_on_after(_POKE_SECONDS)
        try:
            with scope:
                await self._client.submit(request)
        except (JobAlreadyExists, RequestRejected):
            pass
        except Exception as exc:  # noqa: BLE001 (no trouble may end the watching; the next look tries again)
            _log.debug("%s was not to be poked: %s", self._client.connection.address, exc)
            return
        self._in_doubt = scope.cancelled_caught
