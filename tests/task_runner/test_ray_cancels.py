"""What Ray's own cancel does to others, when it meets the end of its task."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real_ray import TERMS, RealRay

pytestmark = pytest.mark.ray

CANCELS = """
import random, sys, time
import ray
from prefect_ray_worker.task_runner.cancelling import Canceller

ray.init(sys.argv[1], log_to_driver=False)
canceller = Canceller()
RETURNS = 2_000  # it takes Ray longer to complete it

@ray.remote(max_retries=0, num_returns=RETURNS)
def ends_at(moment):
    wait_until(moment)
    return range(RETURNS)

def wait_until(moment):
    time.sleep(max(0, moment - time.time()))

ray.wait(ends_at.remote(0)[:1])
for _ in range(60):
    moment = time.time() + 0.03
    refs = ends_at.remote(moment)
    wait_until(moment + random.uniform(0, 0.02))
    canceller.cancel(refs[:1], force=False)
    ray.wait(refs[-1:], timeout=10)
print("went on")
"""


def test_a_cancel_that_meets_the_end_of_its_task_does_not_abort_the_flow(
    cluster: RealRay, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", CANCELS, cluster.gcs_address]
    env = {**os.environ, **TERMS}
    done = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=90
    )
    assert done.stdout == "went on\n", done.stderr[-2_000:]
