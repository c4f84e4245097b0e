"""`python -m prefect_ray_worker`: the same as the command `prefect-ray-worker`."""

import sys

from prefect_ray_worker.commands.app import main

if __name__ == "__main__":
    sys.exit(main())
