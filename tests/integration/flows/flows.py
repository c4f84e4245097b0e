"""The flows that the integration tests deploy: each behaves in one way."""

import os
import signal
import time
from pathlib import Path

from prefect import flow, get_run_logger, task


@task
def double(number: int) -> int:
    return 2 * number


@flow
def adds(left: int = 1, right: int = 2) -> int:
    get_run_logger().info("adds says %s", left + right)
    return double(left) + double(right)


@flow
def fails() -> None:
    raise ValueError("this flow fails on purpose")


@flow
def sleeps(seconds: float = 120, marker: str | None = None) -> None:
    """Sleep until the marker, if there is one, is removed."""
    if marker:
        with Path(marker).open("a") as file:
            file.write(f"{os.getpid()}\n")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (not marker or Path(marker).exists()):
        time.sleep(0.1)


@flow
def ignores_termination(seconds: float = 120) -> None:
    """Hang in a way that neither Prefect's cancellation nor SIGTERM can end."""
    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            time.sleep(0.5)
        except BaseException:
            continue


@flow
def fails_at_first(marker: str) -> str:
    """Fail where the marker does not exist, and make it exist."""
    if not Path(marker).exists():
        with Path(marker).open("w") as file:
            file.write("tried")
        raise RuntimeError("first time")
    return "second time"


@flow
def counts_its_runs(marker: str) -> None:
    with Path(marker).open("a") as file:
        file.write("ran\n")


@flow
def shows_environment(names: list[str]) -> None:
    for name in names:
        get_run_logger().info("env %s=%s", name, os.environ.get(name))


@flow
def bench(marker: str) -> None:
    """Say when it begins and when it ends, and wait in between for a sign."""
    path = Path(marker)
    begun = path.with_suffix(".begun")
    begun.write_text(f"{time.time()} {os.getpid()}")
    begun.rename(path)
    while not path.with_suffix(".go").exists():
        time.sleep(0.05)
    path.with_suffix(".end").write_text(str(time.time()))
