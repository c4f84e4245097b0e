"""Who named the cluster of a run: that decides which credentials of the worker it may use.

A deployment or a run may name any address. The token in the worker's environment, and the files of
the worker's machine, must not follow it there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prefect.utilities.templating import apply_values

from prefect_ray_worker.config.block import RayCluster
from prefect_ray_worker.errors import InvalidConfiguration

FOLDER_SETTING = "PREFECT_INTEGRATIONS_RAY_WORKER_CREDENTIALS_FOLDER"

_NAMES = ("address", "cluster", "kuberay", "cluster_source")
_STORED = re.compile(r"\s*\{\{\s*prefect\.blocks\.ray-cluster\.[^.\s}]+\s*\}\}\s*")


@dataclass(frozen=True)
class ClusterOrigin:
    """Who named a run's cluster.

    Attributes:
        pool_names_address: The variable `address` is as the work pool has it.
        pool_names_cluster: The variable `cluster` is as the work pool has it.
        cluster_is_stored: The variable `cluster` refers to a stored block.
        pool_names_any: The work pool names a cluster, or makes one, for a run that sets nothing.
    """

    pool_names_address: bool = False
    pool_names_cluster: bool = False
    cluster_is_stored: bool = False
    pool_names_any: bool = False

    @classmethod
    def of(cls, base_job_template: Mapping[str, Any], values: Mapping[str, Any]) -> "ClusterOrigin":
        """Return who names the cluster, from what is not resolved yet.

        Args:
            base_job_template: Of the work pool.
            values: The job variables of the deployment and the run.
        """
        template = {name: base_job_template["job_configuration"].get(name) for name in _NAMES}
        properties = base_job_template.get("variables", {}).get("properties", {})
        defaults = {name: field.get("default") for name, field in properties.items()}
        given = {name: value for name, value in values.items() if "." not in name}
        # `cluster.address` replaces the pool's whole cluster by a new one (Prefect 3.8.8).
        given |= {name.partition(".")[0]: {name: ...} for name in values if "." in name}
        of_pool = _filled_in(template, defaults)
        of_run = _filled_in(template, {**defaults, **given})
        return cls(
            pool_names_address=of_run.get("address") == of_pool.get("address"),
            pool_names_cluster=of_run.get("cluster") == of_pool.get("cluster"),
            cluster_is_stored=_is_reference(of_run.get("cluster")),
            pool_names_any=any(of_pool.get(name) is not None for name in _NAMES),
        )


def refuse_foreign_files(cluster: RayCluster, origin: ClusterOrigin, folder: Path | None) -> None:
    """Refuse a cluster that would have the worker read a file which it must not.

    Args:
        cluster: The run's cluster.
        origin: Who named it.
        folder: The only folder with files that job variables may name; None for no such folder.

    Raises:
        InvalidConfiguration: `token_path` or `ca_file` is not allowed there.
    """
    if origin.cluster_is_stored:
        return
    for name in ("token_path", "ca_file"):
        path = getattr(cluster, name)
        if path is not None and not _is_below(Path(path), folder):
            raise InvalidConfiguration(
                f"job variable 'cluster.{name}' names a file of the worker's machine. Name it in a "
                "stored RayCluster block and refer to that, or put the file into the folder that "
                f"the worker's setting {FOLDER_SETTING} names."
            )


def _filled_in(template: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
    return cast("dict[str, Any]", apply_values(template, variables))


def _is_reference(value: object) -> bool:
    if isinstance(value, str):
        return _STORED.fullmatch(value) is not None
    reference = value.get("$ref") if isinstance(value, dict) else None
    return isinstance(reference, dict) and bool(reference.get("block_document_id"))


def _is_below(path: Path, folder: Path | None) -> bool:
    # Resolved: a link, or `..`, must not lead out of the folder.
    return folder is not None and path.resolve().is_relative_to(folder.resolve())
