"""Flows that print: what the tests of the log bridge deploy."""

import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.task_runners import ProcessPoolTaskRunner

from prefect_ray_worker import RayTaskRunner
from prefect_ray_worker.task_runner import with_run_context


@task
def speaks() -> None:
    get_run_logger().info("task logger says hello")
    print("task printed")


@flow
def prints_in_every_way() -> None:
    """Say each thing once, by every way there is."""
    log = get_run_logger()
    print("printed first")
    log.info("flow logger says one")
    print("printed between")
    log.info("flow logger says\ntwo lines")
    print("to stderr", file=sys.stderr)
    try:
        raise KeyError("caught on purpose")
    except KeyError:
        log.exception("flow logger has a traceback")
    speaks()
    logging.getLogger("mylib").warning("library careful")
    warnings.warn("python careful", UserWarning, stacklevel=1)
    subprocess.run(["sh", "-c", "echo subprocess out; echo subprocess err >&2"], check=True)
    for percent in range(0, 101, 10):
        sys.stderr.write(f"\rbar {percent}%")
        sys.stderr.flush()
        time.sleep(0.02)
    sys.stderr.write("\n")
    sys.stdout.buffer.write(b"bad \xff\xfe bytes\n")
    sys.stdout.buffer.flush()
    print("\x1b[31mred\x1b[0m")
    print("long " + "x" * 300_000)
    print("longer " + "x" * 1_200_000)
    print("printed last, without an end", end="")


@flow(task_runner=ProcessPoolTaskRunner(max_workers=1))
def logs_in_a_process_pool() -> None:
    """Log in a process that Prefect starts, and print what looks like a log of Prefect."""
    speaks.submit().result()
    print("12:00:00.123 | INFO    | Flow run 'a-b' - printed by hand")
    print("Traceback (most recent call last):\n  File by hand\nValueError: printed by hand as well")


@flow
def fails_loudly() -> None:
    print("before the end")
    raise ValueError("this flow fails loudly")


@flow
def prints_in_ray_tasks() -> None:
    import ray

    @ray.remote
    def remote() -> str:
        print("ray worker printed")
        return "done"

    ray.init(address="auto")
    assert ray.get(remote.remote()) == "done"
    time.sleep(1)  # Ray forwards the output of its workers twice a second


@task
def prints_like_prefect(number: int) -> None:
    word = "abcdef"[number]  # Ray drops lines that differ by nothing but numbers
    print(f"12:00:00.123 | INFO    | Task run 'a-b' - printed by {word}")
    print(f"Traceback (most recent call last):\n  File by {word}\nValueError: printed {word}")
    get_run_logger().info("task logger says hello to %s", word)
    print(f"12:00:00.123 | INFO    | Task run 'a-b' - to stderr by {word}", file=sys.stderr)
    time.sleep(1)  # long enough for the others to be elsewhere


@flow(task_runner=RayTaskRunner())
def prints_like_prefect_in_ray() -> None:
    import ray

    prints_like_prefect.map(range(3)).wait()
    remote = ray.remote(with_run_context(prints_like_prefect.fn))
    ray.get(remote.remote(3))
    time.sleep(1)


@flow
def chats(lines: int, marker: str | None = None, width: int = 60) -> None:
    """Print numbered lines; with a marker, half of them before it exists and half after."""
    for number in range(lines):
        if marker and number == lines // 2:
            sys.stdout.flush()
            deadline = time.monotonic() + 60
            while not Path(marker).exists() and time.monotonic() < deadline:
                time.sleep(0.05)
        print(f"chat {number:07} {'.' * (width - 13)}")


@flow
def speaks_below(word: str) -> None:
    get_run_logger().info("subflow logger says %s", word)


@flow
def dies_before_its_logs_are_sent() -> None:
    """Log in every way, and die before Prefect's handler has sent all of it."""
    log = get_run_logger()
    log.info("sent in time")
    speaks_below("early")
    for handler in logging.getLogger("prefect.flow_runs").handlers:
        handler.flush()
    log.info("said twice")
    log.info("said twice")
    print("printed between")
    time.sleep(0.01)  # marks tell milliseconds
    log.error("the last\ntwo lines\tof it")
    speaks()
    speaks_below("late")
    log.warning("the very last")
    os.kill(os.getpid(), signal.SIGKILL)
