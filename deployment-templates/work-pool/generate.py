"""Writes the base job templates of this folder from the worker's own: `make docs`.

A base job template is the whole form of a pool, so it must be generated again when the worker gets
new variables. With `--check` it writes nothing and fails if one is stale; `make check` does that.
"""

import copy
import json
import sys
from pathlib import Path
from typing import Any

from prefect_ray_worker.worker import RayWorker

HERE = Path(__file__).parent
_DAY = 24 * 60 * 60


def with_defaults(**defaults: Any) -> dict[str, Any]:
    """Return the worker's template with other defaults, which a deployment can override."""
    template = copy.deepcopy(RayWorker.get_default_base_job_template())
    for name, value in defaults.items():
        template["variables"]["properties"][name]["default"] = value
    return template


def without(template: dict[str, Any], *names: str, **fixed: Any) -> dict[str, Any]:
    """Remove variables from a template, so that no deployment can set them, and fix some values."""
    for name in (*names, *fixed):
        del template["variables"]["properties"][name]
        del template["job_configuration"][name]
    template["job_configuration"].update(fixed)
    # Remove definitions that only these variables used.
    definitions = template["variables"]["definitions"]
    for name in list(definitions):
        if f'"#/definitions/{name}"' not in json.dumps(template["variables"]):
            del definitions[name]
    return template


def _cluster(fewest: int, most: int) -> dict[str, Any]:
    return {
        "namespace": "ray",
        "image": "CHANGE_ME_REGISTRY/ray-prefect:2.60.0-3.8.8",
        "secrets": {"PREFECT_API_KEY": "prefect-api/api-key"},
        "token_secret": "ray-token",
        "head": {"cpus": 1, "memory": "4GiB"},
        "workers": [{"name": "cpu", "cpus": 2, "memory": "8GiB", "min": fewest, "max": most}],
    }


TEMPLATES = {
    # Many short flows: a small driver each, on any node, with limits and short records.
    "small.json": with_defaults(
        entrypoint_num_cpus=0.5,
        entrypoint_memory="1GiB",
        start_timeout_seconds=600,
        run_timeout_seconds=60 * 60,
        delete_job_after_seconds=_DAY,
    ),
    # Drivers run on nodes with the resource `driver` (see kuberay-gpu). GPU nodes start slowly and
    # can be taken away.
    "gpu.json": with_defaults(
        entrypoint_resources={"driver": 1},
        start_timeout_seconds=30 * 60,
        infrastructure_retries=2,
        delete_job_after_seconds=7 * _DAY,
    ),
    # Each run has a cluster of its own (see kuberay-per-run).
    "kuberay.json": with_defaults(
        kuberay=_cluster(0, 10),
        infrastructure_retries=2,
    ),
    # Runs share a cluster while there are some (see kuberay-shared).
    "kuberay-shared.json": with_defaults(
        kuberay={
            **_cluster(1, 4),
            "scope": "shared",
            "idle_seconds": 600,
        },
        infrastructure_retries=2,
    ),
    # Each driver has a node to itself, one with the resource `isolated`. A deployment cannot choose
    # a different cluster, command or node.
    "isolated.json": without(
        with_defaults(
            start_timeout_seconds=30 * 60,
            run_timeout_seconds=_DAY,
            delete_job_after_seconds=_DAY,
        ),
        "address",
        "cluster",
        "kuberay",
        "cluster_source",
        "command",
        "entrypoint_label_selector",
        entrypoint_resources={"isolated": 1},
    ),
}


def main() -> int:
    pages = {name: json.dumps(template, indent=2) + "\n" for name, template in TEMPLATES.items()}
    stale = [name for name, text in pages.items() if _read(HERE / name) != text]
    if "--check" in sys.argv:
        if stale:
            print(f"Stale: {', '.join(stale)} in deployment-templates/work-pool. Run `make docs`.")
        return len(stale)
    for name in stale:
        (HERE / name).write_text(pages[name])
        print(f"wrote deployment-templates/work-pool/{name}")
    return 0


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
