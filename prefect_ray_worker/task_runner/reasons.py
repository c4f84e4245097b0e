"""Why Ray does not have the outcome or the result of a task, in words."""


def describe(exc: BaseException) -> str:
    """Say in words why Ray has no outcome of a task."""
    from ray import exceptions as ray

    cause = getattr(exc, "cause", None)
    if isinstance(exc, ray.RayTaskError) and isinstance(cause, BaseException):
        exc = cause
    said = str(exc).strip()
    match exc:
        case ray.OutOfMemoryError():
            why = (
                "Ray killed the task's process because its node ran out of memory. Ask for "
                "`memory` in remote_options, or for more CPUs, so that fewer tasks share a node"
            )
        case ray.NodeDiedError():
            why = "The node that the task ran on has died"
        case ray.WorkerCrashedError():
            why = (
                "The process of the task has died: it was killed, has crashed (a segmentation "
                "fault, for example) or has exited"
            )
        case ray.RuntimeEnvSetupError():
            why = "Ray could not set up the runtime environment of the task"
        case ray.ObjectLostError():
            why = "A result that the task needs is lost with its node or its owner"
        case ray.TaskUnschedulableError():
            why = "Ray can place the task nowhere"
        case ray.TaskPlacementGroupRemoved():
            why = "The placement group of the task was removed"
        case _:
            why = "Ray could not run the task"
    return f"{why} ({type(exc).__name__}: {said})"


def is_infrastructure(exc: BaseException) -> bool:
    """Say whether running the task again could help: its process or its node has gone."""
    from ray import exceptions as ray

    return isinstance(exc, (ray.WorkerCrashedError, ray.NodeDiedError, ray.OutOfMemoryError))
