"""`python -m prefect_ray_worker.driver <flow run id> <attempt>`: the entrypoint of a Ray Job."""

import sys

from prefect_ray_worker._version import OLDEST_PYTHON
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.exits import DriverExit, explained


def _refuse_old_python() -> None:
    # Here and in what is imported above, nothing may need a newer Python: the Ray nodes choose it.
    if sys.version_info < OLDEST_PYTHON:
        mismatch = Category.PYTHON_VERSION_MISMATCH
        found = sys.version.split()[0]
        why = f"{mismatch}: The Python of the Ray node ({sys.executable}) is {found}."
        sys.exit(explained(DriverExit.OLD_PYTHON, f"{why} {mismatch.advice}"))


if __name__ == "__main__":
    _refuse_old_python()
    from prefect_ray_worker.driver.supervise.supervisor import main

    sys.exit(main(sys.argv[1:]))
