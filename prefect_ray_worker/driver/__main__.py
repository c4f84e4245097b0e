"""`python -m prefect_ray_worker.driver <flow run id> <attempt>`: the entrypoint of a Ray Job."""

import sys

from prefect_ray_worker.driver.supervisor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
