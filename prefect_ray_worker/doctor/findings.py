"""`Findings`: what the probe has printed, typed. A subject that it did not come to is None."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from prefect_ray_worker.doctor import probe


class Found(BaseModel):
    """What was found about a subject.

    Attributes:
        error: Why nothing was found, in a line; None if something was.
        status: The HTTP status of the answer behind the error, if there was one.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    error: str | None = None
    status: int | None = None


class Versioned(Found):
    """A package.

    Attributes:
        version: Its version.
    """

    version: str = ""


class PythonFound(Versioned):
    """The Python of the job.

    Attributes:
        executable: Its path.
        host: Name of the node.
        time: The node's clock, in seconds since the epoch.
    """

    executable: str = ""
    host: str = ""
    time: float = 0.0


class ApiFound(Found):
    """The Prefect API, seen from the job.

    Attributes:
        url: As the job has it; None if it has none.
        date: The server's clock, as its answer has it.
        time: The node's clock at that moment, in seconds since the epoch.
        knows_pool: Whether it has the work pool that was named; None if none was.
    """

    url: str | None = None
    date: str | None = None
    time: float = 0.0
    knows_pool: bool | None = None


class RayFound(Versioned):
    """The cluster, as a driver that has joined it sees it.

    Attributes:
        nodes: How many are alive.
        on_head: Whether the job runs on the head node.
    """

    nodes: int = 0
    on_head: bool = False


class NodeFound(Found):
    """Another node, seen by a task on it.

    Attributes:
        host: Its name; None if there is no other node.
        python: Version of its Python.
        prefect: Version of its Prefect.
    """

    host: str | None = None
    python: str = ""
    prefect: str = ""


class Findings(BaseModel):
    """All that a probe has said."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    python: PythonFound | None = None
    driver: Versioned | None = None
    prefect: Versioned | None = None
    api: ApiFound | None = None
    ray: RayFound | None = None
    other_node: NodeFound | None = None


def read_findings(output: str) -> Findings:
    """Return what is in the output of a probe; lines of others in it do no harm."""
    found: dict[str, Any] = {}
    for line in output.splitlines():
        _, mark, said = line.partition(f"{probe.MARK} ")
        if mark:
            try:
                found |= json.loads(said)
            except ValueError:
                continue  # cut off by the job's end
    try:
        return Findings.model_validate(found)
    except ValidationError:
        return Findings()
