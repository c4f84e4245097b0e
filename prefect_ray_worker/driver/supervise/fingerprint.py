"""`fingerprint_of_process`: which runs may be forked from the same process.

What a process has read while it imported Prefect is handed to every fork: its environment with all
credentials in it, settings, modules. So two runs share a zygote only where all of it is the same;
what is Ray's or Prefect's word for one run is handed over with each run instead.
"""

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

# Nothing that the imports of Prefect and of the driver read: the run, the job, and the devices that
# Ray has chosen for it (`_private/accelerators`, Ray 2.60).
_PER_RUN = re.compile(
    r"PREFECT__\w+|RAY_JOB_ID|RAY_JOB_CONFIG_JSON_ENV_VAR|_|SHLVL"
    r"|(CUDA|HIP|ROCR|ASCEND_RT|HABANA|FURIOSA|NEURON_RT|TPU)_VISIBLE_\w+|ONEAPI_DEVICE_SELECTOR"
    r"|ZE_AFFINITY_MASK|TPU_(CHIPS|HOST|PROCESS)_\w+|RBLN_DEVICES|MUSA_VISIBLE_DEVICES"
)
# Prefect looks for these in the working folder and above it (3.8.8, `settings/base.py`).
_SETTINGS_FILES = (".env", "prefect.toml", "pyproject.toml")
# Of the logging configuration. The first one counts (3.8.8, `settings/models/logging.py`).
_LOGGING_CONFIGURATION = ("PREFECT_LOGGING_CONFIG_PATH", "PREFECT_LOGGING_SETTINGS_PATH")
_NAMESPACES = ("mnt", "pid", "net", "user", "ipc", "uts")


def fingerprint_of_process(raylet: int, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return what this process has in common with those that it could be forked from.

    Args:
        raylet: The process of the Ray node.
        environment: The variables of this process.

    Returns:
        32 hexadecimal digits; None where a process cannot be told apart from that of another node
        or container, as on macOS.
    """
    try:
        place = [str(Path("/proc/self/ns", name).readlink()) for name in _NAMESPACES]
        place += [
            Path("/proc/sys/kernel/random/boot_id").read_text(),
            Path("/proc/self/cgroup").read_text(),
        ]
        folder = Path.cwd()
    except OSError:
        return None
    lasting = sorted(f"{k}={v}" for k, v in environment.items() if not _PER_RUN.fullmatch(k))
    parts = [
        *place,
        str(raylet),
        *lasting,
        str(folder),
        str((os.getuid(), os.getgid(), sys.executable, sys.version, tuple(sys.flags))),
        __file__,
        *(_stamp(path) for path in _read_by_imports(folder, environment)),
    ]
    text = "\0".join(parts).encode(errors="surrogateescape")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _read_by_imports(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    # The time of a folder with packages changes when one is installed, upgraded or removed there.
    # The first entry is the working folder, which runs may write to.
    yield from map(Path, sys.path[1:])
    yield Path(__file__)
    home = Path(environment.get("PREFECT_HOME") or Path.home() / ".prefect")
    yield Path(environment.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    yield home / "prefect.toml"
    named = filter(None, map(environment.get, _LOGGING_CONFIGURATION))
    yield Path(next(named, home.expanduser() / "logging.yml"))
    for above in (folder, *folder.parents):
        yield from (above / name for name in _SETTINGS_FILES)


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except (OSError, RuntimeError):
        return str(path)
    return f"{path} {found.st_ino} {found.st_mtime_ns}"
