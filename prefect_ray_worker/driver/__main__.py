"""`python -m prefect_ray_worker.driver <flow run id> <attempt>`: the entrypoint of a Ray Job."""

import sys

from prefect_ray_worker._version import OLDEST_PYTHON


def _refuse_old_python() -> None:
    # The Ray nodes choose the Python: nothing that is imported here needs a newer one. It is
    # imported late because it takes as long as all else up to the guard.
    from prefect_ray_worker.driver.last_words import explained
    from prefect_ray_worker.shared.category import Category
    from prefect_ray_worker.shared.diagnosis import diagnosed, newer_image
    from prefect_ray_worker.shared.exits import DriverExit

    found, needed = sys.version.split()[0], ".".join(map(str, OLDEST_PYTHON))
    cause = (
        f"The Python of the Ray node ({sys.executable}) is {found}, and the driver needs {needed}."
    )
    too_old = diagnosed(
        Category.PYTHON_VERSION_MISMATCH,
        cause,
        advice=newer_image(OLDEST_PYTHON, _version_of_ray()),
    )
    sys.exit(explained(DriverExit.OLD_PYTHON, too_old, sys.argv[-1]))


def _version_of_ray() -> str:
    # Without importing it, which takes long and can fail.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ray")
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    if sys.version_info < OLDEST_PYTHON:
        _refuse_old_python()
    from prefect_ray_worker.driver.supervise.supervisor import main

    sys.exit(main(sys.argv[1:]))
