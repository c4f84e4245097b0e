"""What else is known of an attempt's job when it has to be said why it failed."""

from prefect_ray_worker.attempts.attempt import Attempt
from prefect_ray_worker.diagnosis.job import Context
from prefect_ray_worker.diagnosis.resources import Asked
from prefect_ray_worker.errors import InvalidConfiguration, JobsApiError
from prefect_ray_worker.jobs_api.resources import asked_for


async def context_of(attempt: Attempt) -> Context:
    """Return what a job asks for and what its cluster has; less, where that cannot be found out."""
    try:
        asked = asked_for(attempt.configuration.submission_request(attempt.job_id))
    except InvalidConfiguration:
        asked = Asked()  # an adopted run, whose configuration makes no job any more
    try:
        return Context(asked, await attempt.cluster.client.resources())
    except JobsApiError:
        return Context(asked)
