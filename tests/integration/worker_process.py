"""`prefect worker start` as users run it: a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prefect.settings import PREFECT_API_URL

from tests.integration.harness import QUERY_SECONDS


def heed_interrupts() -> None:
    """A suite that a shell runs in the background hands an ignored SIGINT down to its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def worker_process(
    pool_name: str, home: Path, *extra: str, env: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """`prefect worker start` in a process of its own, its output in `<home>/worker.log`."""
    home.mkdir(exist_ok=True)
    complete = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "PREFECT_API_URL": PREFECT_API_URL.value(),
        "PREFECT_HOME": str(home),
        "PREFECT_WORKER_QUERY_SECONDS": QUERY_SECONDS,
        **(env or {}),
    }
    with (home / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool_name, *extra],
            env=complete,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=heed_interrupts,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
