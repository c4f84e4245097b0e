"""`AttemptMaker`: puts together what is known of an attempt, for new runs and for found ones."""

import platform
from collections.abc import Callable
from logging import Logger, LoggerAdapter
from typing import Any

from prefect.client.schemas.objects import FlowRun

from prefect_ray_worker.clusters.open import OpenClusters
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.runs.run import Attempt, Surroundings

RunLogger = Callable[[FlowRun], "Logger | LoggerAdapter[Any]"]


class AttemptMaker:
    """Makes the attempts of one worker.

    Attributes:
        around: What they share.
        host: Name of this machine.
        clusters: The clusters in use.
        log_of: Returns a logger that logs to a flow run.

    Args:
        around: What they share.
        clusters: The clusters in use.
        logger_of: Returns a logger that logs to a flow run.
    """

    def __init__(self, around: Surroundings, clusters: OpenClusters, logger_of: RunLogger) -> None:
        self.around = around
        self.host = platform.node()
        self.clusters = clusters
        self.log_of = logger_of

    async def make(
        self, flow_run: FlowRun, configuration: RayJobConfiguration, connection: Connection
    ) -> Attempt:
        """Return the present attempt at a run.

        Args:
            flow_run: The run.
            configuration: Prepared for it.
            connection: The cluster that has its job, or is to have it.
        """
        return Attempt(
            flow_run=flow_run,
            history=await self.around.flow_runs.states(flow_run.id),
            configuration=configuration,
            cluster=await self.clusters.get(connection),
            around=self.around,
            log=self.log_of(flow_run),
        )
