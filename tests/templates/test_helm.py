"""Values for Prefect's own Helm chart: by its schema, with the rights that a worker needs.

There is no Helm here, so the chart itself is not rendered.
"""

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from prefect.cli.worker import start

from prefect_ray_worker import RayWorker, __version__
from tests.templates.folders import ROOT, TEMPLATES

FOLDER = TEMPLATES / "helm"
# The chart's own schema, beside the checkout where this project is developed, if it is there:
# charts/prefect-worker/values.schema.json of PrefectHQ/prefect-helm at that tag.
VERSION = "2026.8.18172642"
SCHEMA = ROOT.parent / "shared" / "data" / "prefect-helm" / f"values.schema-{VERSION}.json"
# The values that the files use, as that schema has them. Below `worker` it refuses other names.
KNOWN: dict[str, type] = {
    "nameOverride": str,
    "fullnameOverride": str,
    "worker.replicaCount": int,
    "worker.config.type": str,
    "worker.config.workPool": str,
    "worker.config.installPolicy": str,
    "worker.config.baseJobTemplate.configuration": str,
    "worker.image.repository": str,
    "worker.image.prefectTag": str,
    "worker.apiConfig": str,
    "worker.selfHostedServerApiConfig.apiUrl": str,
    "worker.cloudApiConfig.accountId": str,
    "worker.cloudApiConfig.workspaceId": str,
    "worker.cloudApiConfig.apiKeySecret.name": str,
    "worker.cloudApiConfig.apiKeySecret.key": str,
    "worker.extraEnvVars": list,
    "worker.livenessProbe.enabled": bool,
    "worker.livenessProbe.config.initialDelaySeconds": int,
    "worker.livenessProbe.config.periodSeconds": int,
    "worker.livenessProbe.config.timeoutSeconds": int,
    "worker.livenessProbe.config.failureThreshold": int,
    "worker.livenessProbe.config.successThreshold": int,
    "worker.resources.requests.cpu": str,
    "worker.resources.requests.memory": str,
    "worker.resources.limits.cpu": str,
    "worker.resources.limits.memory": str,
    "worker.podDisruptionBudget.minAvailable": int,
    "role.create": bool,
    "role.extraPermissions": list,
    "rolebinding.create": bool,
}
WORKERS = ("existing-cluster.yaml", "cluster-per-run.yaml")


def values(*names: str) -> dict[str, Any]:
    """Return files of values, merged as Helm merges them."""

    def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
        merged = dict(below)
        for key, value in above.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = merge(merged[key], value) if both else value
        return merged

    result: dict[str, Any] = {}
    for name in names:
        result = merge(result, yaml.safe_load((FOLDER / name).read_text()))
    return result


def leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values that are no mappings, with their paths."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


COMBINED = pytest.mark.parametrize(
    "names",
    [(name, *others) for name in WORKERS for others in ((), ("cloud.yaml",))],
    ids=" and ".join,
)


@COMBINED
def test_values_are_those_that_the_chart_knows(names: tuple[str, ...]) -> None:
    found = dict(leaves(values(*names)))
    assert {path: type(value) for path, value in found.items() if path in KNOWN} == {
        path: KNOWN[path] for path in found if path in KNOWN
    }
    assert set(found) - set(KNOWN) == set()
    assert found["worker.apiConfig"] == ("cloud" if len(names) > 1 else "selfHostedServer")


@COMBINED
@pytest.mark.skipif(not SCHEMA.exists(), reason=f"the chart's schema is not at {SCHEMA}")
def test_values_keep_the_schema_of_the_chart(names: tuple[str, ...]) -> None:
    merged = values(*names)
    # What `--set-file` does, as the README says.
    template = (TEMPLATES / "work-pool" / "kuberay.json").read_text()
    merged["worker"]["config"]["baseJobTemplate"] = {"configuration": template}
    schema = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text()))
    schema.validate(merged)
    merged["worker"]["config"]["workpool"] = "any"
    with pytest.raises(jsonschema.ValidationError, match="workpool"):
        schema.validate(merged)


def test_what_the_readme_sets_is_known_too() -> None:
    readme = (FOLDER / "README.md").read_text()
    (path,) = re.findall(r"--set-file ([\w.]+)=../work-pool/kuberay.json", readme)
    assert path in KNOWN


@pytest.mark.parametrize("name", WORKERS)
def test_chart_starts_our_worker_from_our_image(name: str) -> None:
    worker = values(name)["worker"]
    assert worker["config"]["type"] == RayWorker.type
    assert worker["image"]["prefectTag"] == __version__
    assert f"/prefect-ray-worker:{__version__} " in (TEMPLATES / "images/README.md").read_text()
    # What the chart's deployment.yaml passes to `prefect worker start` for these values.
    options = {"worker_type", "work_pool_name", "install_policy", "with_healthcheck"}
    assert options <= set(inspect.signature(start).parameters)


def test_role_grants_what_the_template_without_helm_grants() -> None:
    documents = yaml.safe_load_all((TEMPLATES / "kuberay-per-run" / "rbac.yaml").read_text())
    (rules,) = (document["rules"] for document in documents if document["kind"] == "Role")
    assert values("cluster-per-run.yaml")["role"]["extraPermissions"] == rules


@pytest.mark.parametrize(
    ("name", "folder"),
    [(WORKERS[0], "kuberay-existing-cluster"), (WORKERS[1], "kuberay-per-run")],
)
def test_network_policies_know_the_workers_by_the_name_of_the_chart(name: str, folder: str) -> None:
    """`common.labels.standard` of the chart sets this label to `nameOverride`."""
    label = {"app.kubernetes.io/name": values(name)["nameOverride"]}
    policies = list(yaml.safe_load_all((TEMPLATES / folder / "network-policy.yaml").read_text()))
    assert label in [policy["spec"]["podSelector"].get("matchLabels") for policy in policies]


def test_readme_names_the_version_of_the_schema() -> None:
    assert f"chart {VERSION}" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("file", WORKERS)
def test_placeholders_of_all_that_is_given_to_helm_are_checked(file: str) -> None:
    blocks = (FOLDER / "README.md").read_text().split("```console")[1:]
    (block,) = (one.partition("```")[0] for one in blocks if f"--values {file}" in one)
    (checked,) = re.findall(r"check\.py (.+)", block)
    assert {file, *re.findall(r"configuration=(\S+)", block)} == set(checked.split())
