"""Whether a cluster that is starting takes jobs yet."""

import anyio

from prefect_ray_worker.errors import JobsApiError, NotAuthorized
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection

# The dashboard waits up to 10 s for its agent (`dashboard/consts.py`, Ray 2.60), and that takes
# seconds for its first job.
_ANSWER_SECONDS = 25.0


async def silence_of(connection: Connection) -> str:
    """Return why a cluster does not take jobs yet; empty if it does.

    Raises:
        NotAuthorized: It refuses the worker's credentials, or the API server does in its place.
    """
    try:
        with anyio.fail_after(_ANSWER_SECONDS):
            async with JobsClient(connection) as ray:
                await ray.version()
                await ray.expect_agent()
    except NotAuthorized:
        raise
    except JobsApiError as exc:
        return str(exc).rstrip(".")
    except TimeoutError:
        return f"no answer within {_ANSWER_SECONDS:g} s"
    return ""
