"""Every exception that this package raises on purpose.

The branches answer one question: may we try again, and do we know what happened?

* RayWorkerError
    * InvalidConfiguration: what the user wrote cannot work; nothing was submitted
    * LocalClusterError: the embedded Ray could not be started or found
    * SubmissionConflict: another tool's job already has our submission id
    * LogsNotSent: the log bridge could not bring logs to Prefect
        * LogsUnclear: they may have arrived, or not; read back before sending them again
        * LogsRefused: they did not arrive, and never will as they are
        * LogsGivenUp: Prefect has been away for longer than the bridge waits
    * NoRayCluster: the task runner was to join a cluster, and there is none
    * Unpicklable: a task or a parameter cannot be sent to the cluster
    * JobsApiError: a call to Ray's Jobs API failed
        * RetryableError: the cluster did not take the request; asking again is safe
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

Messages may be logged and shown to users: no secret is ever put into one.
"""


class RayWorkerError(Exception):
    """Base of every error of this package. The message says what to do."""


class InvalidConfiguration(RayWorkerError, ValueError):
    """A job variable or setting cannot work; the message names it, its value and the way out.

    A `ValueError`, so that pydantic reports it with the place of the field.
    """


class LocalClusterError(RayWorkerError):
    """The embedded Ray cluster could not be started, found or read."""


class SubmissionConflict(RayWorkerError):
    """A job that is not ours holds the submission id of this run."""


class LogsNotSent(RayWorkerError):
    """Logs of a job have not certainly arrived in Prefect."""


class LogsUnclear(LogsNotSent):
    """Prefect may have logs that were sent to it: read back before sending them again."""


class LogsRefused(LogsNotSent):
    """Prefect will not take these logs as they are."""


class LogsGivenUp(LogsNotSent):
    """Prefect has been away for longer than the log bridge waits."""


class NoRayCluster(RayWorkerError, ConnectionError):
    """The task runner was to join a Ray that is not there; a `ConnectionError`, as Ray's own."""


class Unpicklable(RayWorkerError, TypeError):
    """A task or a parameter cannot be sent to the cluster; the message names what is in the way.

    A `TypeError`, as pickle's own.
    """


class JobsApiError(RayWorkerError):
    """A call to Ray's Jobs API did not give a usable answer."""


class RetryableError(JobsApiError):
    """The cluster certainly did not act on the request: asking again is safe."""


class ClusterUnreachable(RetryableError):
    """Nobody answered, or a proxy answered for a cluster that is not there.

    This says something about our view of the cluster and nothing about its jobs.
    """


class AgentUnreachable(RetryableError):
    """The agent of a node cannot be asked from here; the dashboard may still be."""


class AmbiguousError(JobsApiError):
    """The cluster may have acted on the request: read back before deciding anything."""


class TerminalError(JobsApiError):
    """The cluster understood and declined: asking again gives the same answer."""


class RequestRejected(TerminalError):
    """Ray refused the request itself, for example an unknown field or a bad label selector."""


class NotAuthorized(TerminalError):
    """Missing, wrong or expired credentials (HTTP 401 or 403)."""


class NotRayDashboard(TerminalError):
    """Something answers at the address, but not Ray's Jobs API (a login page, a wrong path)."""


class TlsFailed(NotRayDashboard):
    """The other side speaks no TLS, or shows a certificate that is not trusted here."""


class JobNotFound(TerminalError):
    """A reachable Ray cluster says that it has no such job."""


class PackageNotFound(TerminalError):
    """A reachable Ray cluster does not have a package in its store."""


class LogNotFound(TerminalError):
    """A reachable Ray cluster does not have a job's log, or the node that it was on."""


class JobAlreadyExists(TerminalError):
    """A job with this submission id exists already."""


class JobNotTerminal(TerminalError):
    """Ray deletes records of finished jobs only."""
