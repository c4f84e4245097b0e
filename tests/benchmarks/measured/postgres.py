"""A PostgreSQL of its own as Prefect's database: Debian's, on a free loopback port."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port

_USER = "postgres"
_VERSIONS = Path("/usr/lib/postgresql")
_START_SECONDS = 30
_STOP_SECONDS = 30


def _programs() -> Path:
    """Return the folder of the newest installed version's programs."""
    found = sorted(_VERSIONS.glob("*/bin"), key=lambda folder: float(folder.parent.name))
    if not found:
        raise SystemExit("No PostgreSQL is installed. On Debian: apt-get install postgresql")
    return found[-1]


def is_installed() -> bool:
    """Return whether there is a PostgreSQL that `postgres` can start."""
    return any(_VERSIONS.glob("*/bin"))


@contextmanager
def postgres() -> Generator[str, None, None]:
    """Run a PostgreSQL with its default settings while the context is open; yield its port as DSN.

    The DSN is `postgresql://postgres@127.0.0.1:<port>/postgres`. PostgreSQL refuses to run as
    root: then it runs as Debian's user `postgres`.
    """
    programs, port = _programs(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="prwt-postgres-"))
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir(mode=0o700)
    as_user: dict[str, object] = {}
    if os.geteuid() == 0:
        shutil.chown(data, _USER, _USER)
        as_user = {"user": _USER, "group": _USER, "extra_groups": []}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    make = [programs / "initdb", "-D", data, "-U", _USER, "--auth=trust", "-E", "UTF8"]
    subprocess.run([str(part) for part in make], check=True, **quiet, **as_user)  # type: ignore[call-overload]
    serve = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", port, "-k", data]
    serve += ["-c", "max_connections=200"]
    process = subprocess.Popen([str(part) for part in serve], **quiet, **as_user)  # type: ignore[call-overload]
    try:
        _wait_until_ready(programs, port)
        yield f"postgresql://{_USER}@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # "fast": it ends open connections
        process.wait(_STOP_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(programs: Path, port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    ask = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(ask, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise RuntimeError("PostgreSQL did not start.")
        time.sleep(0.1)
