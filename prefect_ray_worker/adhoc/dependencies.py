"""The packages that the cluster installs for a call: `dependencies` of `ray_job`."""

import json
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

from prefect_ray_worker.errors import InvalidConfiguration

# The nodes have Ray, and every job gets this package.
_NEVER = frozenset({"ray", "prefect-ray-worker", "pip", "setuptools", "wheel", "uv"})
_EXPORT_SECONDS = 60
_EXPORT = ("export", "--frozen", "--no-hashes", "--no-emit-project", "--no-dev", "--quiet")


def requirements_of(dependencies: str | Sequence[str]) -> list[str]:
    """Return the requirements for `runtime_env.uv`.

    Args:
        dependencies: `cluster`, `lock`, `freeze`, or a list of requirements.

    Raises:
        InvalidConfiguration: It is something else, or `uv.lock` cannot be read.
    """
    if not isinstance(dependencies, str):
        return list(dependencies)
    match dependencies:
        case "cluster":
            return []
        case "freeze":
            return frozen(distributions())
        case "lock":
            return _locked()
        case _:
            raise InvalidConfiguration(
                f"dependencies is {dependencies!r}. Write 'cluster', 'lock', 'freeze' or a list "
                "of requirements."
            )


def frozen(installed: Iterable[Distribution]) -> list[str]:
    """Return installed packages as requirements, without those that only this machine has.

    Args:
        installed: The packages.
    """
    found: dict[str, str | None] = {}
    for distribution in installed:
        # Of two with one name, Python imports the first.
        if (name := distribution.metadata["Name"]) and _normalized(name) not in found:
            found[_normalized(name)] = _source_of(distribution)
    return [f"{n}{s}" for n, s in sorted(found.items()) if s is not None and n not in _NEVER]


def _source_of(distribution: Distribution) -> str | None:
    """Return what follows a package's name in a requirement; None if only this machine has it."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")  # PEP 610
    url = str(origin.get("url", ""))
    if url.startswith("file:"):
        return None
    if commit := (vcs := origin.get("vcs_info") or {}).get("commit_id"):
        below = f"#subdirectory={folder}" if (folder := origin.get("subdirectory")) else ""
        return f" @ {vcs['vcs']}+{url}@{commit}{below}"
    return f"=={distribution.version}"


def _normalized(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _locked() -> list[str]:
    uv = shutil.which("uv")
    if uv is None:
        raise InvalidConfiguration("dependencies='lock' needs uv, which is not on the PATH.")
    if not any((folder / "uv.lock").is_file() for folder in (Path.cwd(), *Path.cwd().parents)):
        raise InvalidConfiguration(
            f"dependencies='lock' needs a uv.lock in {Path.cwd()} or above. Create it with "
            "`uv lock`."
        )
    said = subprocess.run(  # noqa: S603 (of the user's own PATH)
        [uv, *_EXPORT], capture_output=True, text=True, timeout=_EXPORT_SECONDS, check=False
    )
    if said.returncode != 0:
        raise InvalidConfiguration(f"uv could not export uv.lock: {said.stderr.strip()[:500]}")
    lines = [line.strip() for line in said.stdout.splitlines()]
    wanted = [line for line in lines if line and not line.startswith(("#", "-e", "."))]
    return [line for line in wanted if _normalized(line.partition("==")[0]) not in _NEVER]
