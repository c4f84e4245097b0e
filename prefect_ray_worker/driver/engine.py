"""The second process of a Ray Job: prepares the flow and runs it, in one interpreter."""

import atexit
import os
import sys
import threading
from typing import NoReturn

from prefect_ray_worker.driver import lifeline
from prefect_ray_worker.driver.exits import DriverExit
from prefect_ray_worker.driver.termination import Termination

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
        from prefect_ray_worker.driver.attempt import run_attempt
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "prefect":
            raise
        return _without_prefect(exc)
    return run_attempt(*arguments, termination=termination)


def _without_prefect(exc: ModuleNotFoundError) -> int:
    wanted = os.environ.get("PREFECT_RAY_WORKER_PREFECT_VERSION", "")
    requirement = f"prefect=={wanted}" if wanted else "prefect"
    missing = "has no Prefect" if exc.name == "prefect" else f"has a Prefect without {exc.name!r}"
    version = ".".join(map(str, sys.version_info[:3]))
    print(
        f"The Python {version} of the Ray cluster ({sys.executable}) {missing}. Add "
        f'"{requirement}" to runtime_env.pip, or install it in the image of the Ray nodes.',
        file=sys.stderr,
    )
    return DriverExit.NO_PREFECT


def leave(code: int) -> NoReturn:
    """Exit after all exit functions have run, but without taking the interpreter apart.

    That takes a third of a second with everything that Prefect imports, and the run's slot on
    the cluster is held for as long. Threads that are to be waited for are.
    """
    waited_for = [t for t in threading.enumerate() if not t.daemon]
    if waited_for == [threading.main_thread()]:
        atexit._run_exitfuncs()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
