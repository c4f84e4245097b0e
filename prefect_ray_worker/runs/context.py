"""What else is known of an attempt's job when it has to be said why it failed."""

from prefect_ray_worker.diagnosis.job import Context
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.runs.explain import resources_of
from prefect_ray_worker.runs.run import Attempt
from prefect_ray_worker.shared.resources import Asked


async def context_of(attempt: Attempt) -> Context:
    """Return what a job asks for and what its cluster has; less, where that cannot be found out."""
    try:
        asked = attempt.asked
    except InvalidConfiguration:
        asked = Asked()  # an adopted run, whose configuration makes no job any more
    return Context(asked, await resources_of(attempt.cluster.client))
