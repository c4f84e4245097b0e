"""The second process of a Ray Job: prepares the flow and runs it, in one interpreter."""

import atexit
import os
import sys
import threading
from typing import NoReturn

from prefect_ray_worker.driver.signals import Termination
from prefect_ray_worker.driver.supervise import lifeline
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import diagnosed
from prefect_ray_worker.shared.exits import DriverExit, explained

# Ray makes a reference to a variable that the node does not have an empty text; to Prefect that
# would be a key, and a wrong one.
_MAY_BE_EMPTY = ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_CLIENT_CUSTOM_HEADERS")


def main(arguments: list[str]) -> int:
    """Run one attempt at a flow run.

    Args:
        arguments: The flow run's id and the attempt's.
    """
    lifeline.hold()
    termination = Termination()
    termination.install()
    for name in _MAY_BE_EMPTY:
        if os.environ.get(name) == "":
            del os.environ[name]
    try:
        # First of all: without it, all else that it brings and we need is missing too.
        import prefect  # noqa: F401  # pyright: ignore[reportUnusedImport]

        from prefect_ray_worker.driver import marking
        from prefect_ray_worker.driver.attempt import run_attempt
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] != "prefect":
            raise
        return _without_prefect(exc)
    marking.install()
    code = run_attempt(*arguments, termination=termination)
    return leave(code, wait_for_threads=not termination.delivered)


def _without_prefect(exc: ImportError) -> int:
    wanted = os.environ.get("PREFECT_RAY_WORKER_PREFECT_VERSION", "")
    requirement = f"prefect=={wanted}" if wanted else "prefect"
    category, missing = Category.PREFECT_MISSING, "has no Prefect"
    if "prefect" in sys.modules:
        found = getattr(sys.modules["prefect"], "__version__", "of an unknown version")
        category = Category.PREFECT_VERSION_MISMATCH
        missing = f"has Prefect {found}, which lacks what this worker needs ({exc})"
    version = ".".join(map(str, sys.version_info[:3]))
    cause = f"The Python {version} of the Ray cluster ({sys.executable}) {missing}."
    advice = f'Add "{requirement}" to runtime_env.pip, or install it in the image of the Ray nodes.'
    return explained(DriverExit.NO_PREFECT, diagnosed(category, cause, advice=advice))


def leave(code: int, *, wait_for_threads: bool) -> NoReturn:
    """Exit after all exit functions have run, but without taking the interpreter apart.

    That takes a third of a second with everything that Prefect imports, and the run's slot on
    the cluster is held for as long.

    Args:
        code: The exit code.
        wait_for_threads: Whether to let threads that are no daemons come to their end, as Python
            does; not those of a flow that was told to end.
    """
    waited_for = [t for t in threading.enumerate() if not t.daemon] if wait_for_threads else []
    if waited_for in ([], [threading.main_thread()]):
        atexit._run_exitfuncs()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
