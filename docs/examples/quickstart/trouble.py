"""Flows of `make quickstart SHOW=all`: one that dies, and one that gets no place on the cluster."""

import os
import signal

from prefect import flow, get_run_logger


@flow
def dies() -> None:
    """End as a process does that somebody, or the kernel, kills."""
    get_run_logger().info("Now this flow's process is killed with SIGKILL, as `kill -9` would")
    os.kill(os.getpid(), signal.SIGKILL)


@flow
def wants_gpus() -> None:
    """Never run: the cluster has no GPU."""
