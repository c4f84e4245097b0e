"""Which fault strikes at which stage, and what has to come of it."""

from dataclasses import dataclass, field
from typing import Any

from prefect.client.schemas.objects import StateType

from tests.resilience import faults as f
from tests.resilience import kuberay as k
from tests.resilience.cluster import NODE
from tests.resilience.faults import Fault
from tests.resilience.stages import (
    CANCELLING,
    FINISHING,
    PAUSED,
    PENDING,
    RUNNING,
    SUBMITTING,
    Stage,
)

COMPLETED, CRASHED, CANCELLED = StateType.COMPLETED, StateType.CRASHED, StateType.CANCELLED
FAILED = StateType.FAILED
_ON_NODE: dict[str, Any] = {"entrypoint_resources": {NODE: 1}}
_ONE_RETRY: dict[str, Any] = {"infrastructure_retries": 1}
_SOON: dict[str, Any] = {"start_timeout_seconds": 45}


@dataclass(frozen=True)
class Pair:
    """A fault at a stage.

    Attributes:
        fault: The fault.
        stage: The stage.
        state: How the run has to end.
        executions: How often the user's code has to be begun.
        says: What the message of the final state has to contain.
        variables: Job variables of the run.
        within: Seconds from the fault to the run's end, on a busy machine.
    """

    fault: Fault
    stage: Stage
    state: StateType
    executions: int = 1
    says: str = ""
    variables: dict[str, Any] = field(default_factory=dict)
    within: float = 90

    @property
    def name(self) -> str:
        """How it is called on the command line."""
        return ", ".join([f"{self.fault.name} / {self.stage.name}", *self.options])

    @property
    def options(self) -> list[str]:
        """The job variables that are what the pair is about; where it runs is the fault's."""
        return [f"{k}: {v}" for k, v in self.variables.items() if self.variables != _ON_NODE]


PAIRS = (
    Pair(f.WORKER_KILLED, SUBMITTING, COMPLETED),
    Pair(f.WORKER_KILLED, PENDING, COMPLETED),
    Pair(f.WORKER_KILLED, RUNNING, COMPLETED),
    Pair(f.WORKER_KILLED, PAUSED, COMPLETED),
    Pair(f.WORKER_KILLED, CANCELLING, CANCELLED),
    Pair(f.WORKER_KILLED, FINISHING, COMPLETED),
    Pair(f.WORKER_TERMINATED, SUBMITTING, COMPLETED),
    Pair(f.WORKER_TERMINATED, RUNNING, COMPLETED),
    Pair(f.WORKER_TERMINATED, CANCELLING, CANCELLED),
    Pair(f.WORKER_PAUSED, SUBMITTING, COMPLETED),
    Pair(f.WORKER_PAUSED, RUNNING, COMPLETED),
    Pair(f.WORKER_PAUSED, CANCELLING, CANCELLED),
    Pair(f.GUARD, RUNNING, CRASHED, says="SIGKILL"),
    Pair(f.GUARD, CANCELLING, CANCELLED),
    Pair(f.GUARD, FINISHING, COMPLETED),
    Pair(f.SUPERVISOR, RUNNING, CRASHED),
    Pair(f.SUPERVISOR, CANCELLING, CANCELLED),
    Pair(f.ENGINE, RUNNING, CRASHED, says="signal SIGKILL"),
    Pair(f.ENGINE, PAUSED, CRASHED, says="signal SIGKILL"),
    Pair(f.ENGINE, CANCELLING, CANCELLED),
    Pair(f.ENGINE, FINISHING, COMPLETED),
    Pair(f.JOB_SUPERVISOR, RUNNING, CRASHED, says="upervisor"),
    Pair(f.JOB_SUPERVISOR, RUNNING, COMPLETED, executions=2, variables=_ONE_RETRY),
    Pair(f.JOB_SUPERVISOR, CANCELLING, CANCELLED),
    Pair(f.JOB_SUPERVISOR, FINISHING, COMPLETED),
    Pair(f.FAILED_BY_HAND, RUNNING, FAILED, says="by hand"),
    Pair(f.JOB_HEAD, SUBMITTING, COMPLETED),
    Pair(f.JOB_HEAD, RUNNING, COMPLETED),
    Pair(f.JOB_HEAD, CANCELLING, CANCELLED),
    Pair(f.DASHBOARD, RUNNING, COMPLETED),
    Pair(f.NODE_LOST, RUNNING, CRASHED, says="node", variables=_ON_NODE, within=180),
    Pair(f.NODE_LOST, CANCELLING, CANCELLED, variables=_ON_NODE, within=180),
    Pair(f.HEAD_GONE, SUBMITTING, CRASHED, 0, within=240),
    Pair(f.HEAD_GONE, RUNNING, CRASHED, says="not answered", within=180),
    Pair(f.HEAD_GONE, CANCELLING, CANCELLED, within=180),
    Pair(f.HEAD_RESTARTED, SUBMITTING, COMPLETED),
    Pair(f.HEAD_RESTARTED, PENDING, CRASHED, 0, says="lost"),
    Pair(f.HEAD_RESTARTED, RUNNING, CRASHED, says="lost"),
    Pair(f.HEAD_RESTARTED, CANCELLING, CANCELLED),
    Pair(f.HEAD_RESTARTED_NODE, RUNNING, CRASHED, says="lost", variables=_ON_NODE),
    Pair(
        f.HEAD_WITH_REDIS,
        PENDING,
        CRASHED,
        0,
        says="start_timeout_seconds",
        variables=_SOON,
        within=300,
    ),
    Pair(f.HEAD_WITH_REDIS, RUNNING, CRASHED, within=180),
    Pair(f.HEAD_WITH_REDIS_NODE, RUNNING, COMPLETED, variables=_ON_NODE, within=180),
    Pair(f.HEAD_WITH_REDIS_NODE, CANCELLING, CANCELLED, variables=_ON_NODE, within=180),
    Pair(f.STUCK_RECORD, RUNNING, CRASHED, variables=_ON_NODE, within=180),
    Pair(f.NETWORK_CUT, SUBMITTING, COMPLETED),
    Pair(f.NETWORK_CUT, RUNNING, COMPLETED),
    Pair(f.NETWORK_CUT, CANCELLING, CANCELLED),
    Pair(f.NETWORK_HANGS, SUBMITTING, COMPLETED),
    Pair(f.NETWORK_HANGS, RUNNING, COMPLETED),
    Pair(f.NETWORK_HALVES, SUBMITTING, COMPLETED),
    Pair(f.NETWORK_HALVES, RUNNING, COMPLETED),
    Pair(f.NETWORK_SWALLOWS, SUBMITTING, COMPLETED),
    Pair(f.NETWORK_SWALLOWS, CANCELLING, CANCELLED),
    Pair(f.PREFECT_RESTARTED, SUBMITTING, COMPLETED),
    Pair(f.PREFECT_RESTARTED, PENDING, COMPLETED),
    Pair(f.PREFECT_RESTARTED, RUNNING, COMPLETED),
    Pair(f.PREFECT_RESTARTED, CANCELLING, CANCELLED),
    Pair(f.PREFECT_RESTARTED, FINISHING, COMPLETED),
    Pair(k.WORKER_KILLED, k.STARTING, COMPLETED),
    Pair(k.WORKER_KILLED, RUNNING, COMPLETED),
    Pair(k.WORKER_KILLED, k.RELEASING, COMPLETED, within=180),
    Pair(k.HEAD_KILLED, RUNNING, CRASHED),
    Pair(k.HEAD_KILLED, RUNNING, COMPLETED, executions=2, variables=_ONE_RETRY, within=180),
    Pair(k.API_AWAY, k.STARTING, COMPLETED),
    Pair(k.API_AWAY, RUNNING, COMPLETED),
    Pair(k.API_AWAY, CANCELLING, CANCELLED),
    Pair(k.API_AWAY, k.RELEASING, COMPLETED),
    Pair(k.CLUSTER_DELETED, k.STARTING, CRASHED, 0, says="ClusterDeleted"),
    Pair(k.CLUSTER_DELETED, RUNNING, CRASHED),
    Pair(k.CLUSTER_DELETED, RUNNING, COMPLETED, executions=2, variables=_ONE_RETRY, within=180),
)
