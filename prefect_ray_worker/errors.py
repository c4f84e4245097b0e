"""Every exception that this package raises on purpose.

Each branch answers two questions: is it safe to try again, and is it known what happened?

* RayWorkerError
    * InvalidConfiguration: a job variable or setting cannot work; nothing was submitted
    * LocalClusterError: the embedded Ray could not be started or found
    * ClusterFailed: a cluster that was made for a run does not become ready
    * SubmissionConflict: another tool's job has our submission id
    * LogsNotSent: logs did not certainly arrive in Prefect
        * LogsUnclear: they may have arrived; read back before sending them again
        * LogsRefused: Prefect rejected them, and would again
        * LogsGivenUp: Prefect did not answer for longer than we wait
    * NoRayCluster: the task runner found no cluster to join
    * Unpicklable: a task or a parameter cannot be sent to the cluster
    * TransactionAround: a task was submitted inside a transaction
    * RayShutDown: Ray was shut down under a flow's tasks
    * BundleRefused: a flow without a deployment cannot be sent; no run was left waiting
    * BundleUnusable: the driver cannot run what it found for a flow without a deployment
        * BundleMissing
        * BundleDamaged
        * BundlePythonMismatch
    * NoWorkerOnline: nothing would run a flow that is called from here
    * AnswerMissing: a flow has ended, and its value did not come back
    * JobsApiError: a call to Ray's Jobs API failed
        * RetryableError: the cluster did not act on the request; asking again is safe
            * ClusterUnreachable
            * AgentUnreachable
        * AmbiguousError: the cluster may or may not have acted; read back before deciding
        * TerminalError: asking again gives the same answer
            * RequestRejected
            * NotAuthorized
            * NotRayDashboard
                * TlsFailed
            * JobNotFound
            * PackageNotFound
            * LogNotFound
            * JobAlreadyExists
            * JobNotTerminal
    * KubernetesError: a call to the Kubernetes API failed
        * KubernetesUnreachable: no answer, or none that decides anything
            * KubernetesUnclear: the API server may have acted; read back before deciding
            * CredentialsUnreadable: of an exec plugin or a token file that worked before
        * KubernetesUnauthorized
        * KubernetesForbidden
        * QuotaExceeded
        * NamespaceTerminating
        * KubernetesRejected
            * ManifestRefused
        * KubeRayMissing
        * ObjectMissing
        * AlreadyThere
        * Conflict
            * ObjectReplaced
        * NotKubernetes
            * KubernetesTlsFailed

Messages are logged and shown to users, so none ever holds a secret.
"""

from collections.abc import Generator
from contextlib import contextmanager


class RayWorkerError(Exception):
    """Base of every error of this package. The message says what to do about it."""


class InvalidConfiguration(RayWorkerError, ValueError):
    """A job variable or setting cannot work; the message names it and the way out.

    A `ValueError`, so that pydantic reports it with the place of the field.
    """


class ClusterSourceMissing(InvalidConfiguration):
    """The source of clusters that a run names is not installed here, or cannot be loaded."""


class ClusterSourceUnclear(RayWorkerError):
    """A source of clusters of another package failed to answer; it may do so later."""


class LocalClusterError(RayWorkerError):
    """The embedded Ray cluster could not be started, found or read."""


class ClusterFailed(RayWorkerError):
    """A cluster that is made for a run does not become ready.

    Args:
        message: Begins with the category.
        category: The kind of failure, by its name in messages and events.
        may_retry: Whether another cluster may do better.
    """

    def __init__(self, message: str, *, category: str, may_retry: bool = False) -> None:
        super().__init__(message)
        self.category = category
        self.may_retry = may_retry


class SubmissionConflict(RayWorkerError):
    """A job that is not ours holds the submission id of this run."""


class LogsNotSent(RayWorkerError):
    """It is not certain that a job's logs arrived in Prefect."""


class LogsUnclear(LogsNotSent):
    """Prefect may have received the logs: read back before sending them again.

    Args:
        message: What happened.
        wait: How many seconds Prefect asks us to wait.
    """

    def __init__(self, message: str, *, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class LogsRefused(LogsNotSent):
    """Prefect rejected the logs and would reject them again."""


class LogsGivenUp(LogsNotSent):
    """Prefect did not answer for longer than the log bridge waits."""


class NoRayCluster(RayWorkerError, ConnectionError):
    """The task runner found no Ray to join; a `ConnectionError`, like Ray's own."""


class Unpicklable(RayWorkerError, TypeError):
    """A task or a parameter cannot be pickled for the cluster; the message names the culprit.

    A `TypeError`, like pickle's own.
    """


class TransactionAround(RayWorkerError, RuntimeError):
    """A task was submitted inside a transaction of Prefect, which could not roll it back."""


class RayShutDown(RayWorkerError, RuntimeError):
    """Ray was shut down while a flow's tasks were on it, or before one was submitted."""


class BundleRefused(RayWorkerError, ValueError):
    """A flow without a deployment cannot be sent to the cluster; the message names the culprit."""


class BundleUnusable(RayWorkerError):
    """The driver cannot run the bundle of a flow without a deployment."""


class BundleMissing(BundleUnusable):
    """The flow run has no bundle, or not all of it."""


class BundleDamaged(BundleUnusable):
    """The bundle is not what its caller packed, or another release wrote it."""


class BundlePythonMismatch(BundleUnusable):
    """Another Python version packed the bundle."""


class NoWorkerOnline(RayWorkerError, RuntimeError):
    """No worker of the pool is online, so nothing would run the flow."""


class AnswerMissing(RayWorkerError, LookupError):
    """The value of a flow run did not come back; the message says why."""


class JobsApiError(RayWorkerError):
    """A call to Ray's Jobs API failed, or its answer is not usable."""


class RetryableError(JobsApiError):
    """The cluster did not act on the request: asking again is safe."""


class ClusterUnreachable(RetryableError):
    """The cluster did not answer, or a proxy answered in its place.

    This says nothing about the cluster's jobs.
    """


class AgentUnreachable(RetryableError):
    """A node's agent cannot be reached from here; the dashboard perhaps can."""


class AmbiguousError(JobsApiError):
    """The cluster may have acted on the request: read back before deciding anything."""


class TerminalError(JobsApiError):
    """The cluster declined: asking again gives the same answer."""


class RequestRejected(TerminalError):
    """Ray refused the request itself, for example an unknown field or a bad label selector."""


class NotAuthorized(TerminalError):
    """Missing, wrong or expired credentials (HTTP 401 or 403)."""


class NotRayDashboard(TerminalError):
    """What answers at the address is not Ray's Jobs API (a login page, a wrong path)."""


class TlsFailed(NotRayDashboard):
    """The other side does not speak TLS, or its certificate is not trusted here."""


class JobNotFound(TerminalError):
    """A reachable Ray cluster does not know the job."""


class PackageNotFound(TerminalError):
    """A reachable Ray cluster does not have a package in its store."""


class LogNotFound(TerminalError):
    """A reachable Ray cluster does not have a job's log, or the node that it was on."""


class JobAlreadyExists(TerminalError):
    """A job with this submission id exists already."""


class JobNotTerminal(TerminalError):
    """Ray deletes only the records of finished jobs."""


class KubernetesError(RayWorkerError):
    """A call to the Kubernetes API failed, or its answer is not usable."""


class KubernetesUnreachable(KubernetesError):
    """The Kubernetes API did not answer, or was too busy to act. Asking again is safe.

    This says nothing about the clusters.
    """


class KubernetesUnclear(KubernetesUnreachable):
    """The API server may have acted on the request: read the object back before deciding."""


class CredentialsUnreadable(KubernetesUnreachable):
    """An exec plugin or token file that gave us credentials before does not now.

    A plugin asks a service over the network. Nothing was sent, or the API server refused it.
    """


class KubernetesUnauthorized(KubernetesError):
    """The API server does not accept our credentials (HTTP 401), or they could never be read."""


class KubernetesForbidden(KubernetesError):
    """Role-based access control does not allow the request.

    Args:
        message: What happened, and which rule is missing.
        verb: The verb that the rule must allow, such as `create`.
        resource: The resource, with its API group: `rayclusters.ray.io`, `pods/log`.
        namespace: Where.
    """

    def __init__(self, message: str, *, verb: str, resource: str, namespace: str = "") -> None:
        super().__init__(message)
        self.verb = verb
        self.resource = resource
        self.namespace = namespace


class QuotaExceeded(KubernetesError):
    """A ResourceQuota of the namespace is used up. The object was not created."""


class NamespaceTerminating(KubernetesError):
    """The namespace is being deleted, so that nothing can be created in it."""


class KubernetesRejected(KubernetesError):
    """The API server rejected the request itself (HTTP 400 or 422)."""


class ManifestRefused(KubernetesRejected):
    """The API server, or an admission webhook, rejected the manifest.

    Args:
        message: What happened, without the rejected value.
        field: Path of the field, such as `spec.headGroupSpec`; empty if it is not named.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class KubeRayMissing(KubernetesError):
    """The API server does not serve `rayclusters.ray.io/v1`: KubeRay is not installed."""


class ObjectMissing(KubernetesError):
    """The API server certainly has no such object.

    Args:
        message: What is missing.
        resource: Its resource, such as `rayclusters` or `namespaces`.
    """

    def __init__(self, message: str, *, resource: str = "") -> None:
        super().__init__(message)
        self.resource = resource


class AlreadyThere(KubernetesError):
    """An object of that name exists already, or is still being deleted."""


class Conflict(KubernetesError):
    """The object has changed since it was read: read it again."""


class ObjectReplaced(Conflict):
    """The name belongs to another object now, with another uid."""


class NotKubernetes(KubernetesError):
    """What answers at the address is not a Kubernetes API server."""


class KubernetesTlsFailed(NotKubernetes):
    """The API server's certificate is not trusted here, or it does not speak TLS."""


@contextmanager
def without_groups(known: object = None) -> Generator[None, None, None]:
    """Raise what was raised inside, and not the groups that task groups have made of it.

    Args:
        known: What is being raised anyway: it is not raised once more.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        raised = unwrapped(group)
        if raised is not known:
            raise raised from None


def unwrapped(error: BaseException) -> BaseException:
    """Return what an exception group was made for, if it holds a single exception.

    Task groups wrap whatever is raised inside them, once for each group.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
