"""The folders of templates, and what is in them."""

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from tests.fake_kubernetes.rights import Rule

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "deployment-templates"
# Importing `check.py` leaves one more.
FOLDERS = sorted(p for p in TEMPLATES.iterdir() if p.is_dir() and p.name != "__pycache__")


def load(path: Path) -> ModuleType:
    """Import a script of a folder."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def manifests() -> list[tuple[Path, dict[str, Any]]]:
    """Return every Kubernetes object with its file; all callers share them."""
    return [
        (path, document)
        for path in sorted(TEMPLATES.rglob("*.yaml"))
        for document in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader)
        if document and "kind" in document
    ]


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the containers of all pods that an object makes."""
    spec = manifest.get("spec", {})
    groups = [spec, spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", [])]
    pods = [group["template"]["spec"] for group in groups if "template" in group]
    return [
        container
        for pod in pods
        for container in [*pod.get("initContainers", []), *pod["containers"]]
    ]


def rules_of(folder: str, *names: str) -> list[Rule]:
    """Return the rules of the Roles in some files of a folder."""
    return [
        Rule(
            rule["apiGroups"],
            rule["resources"],
            rule["verbs"],
            names=rule.get("resourceNames", ["*"]),
        )
        for name in names
        for document in yaml.safe_load_all((TEMPLATES / folder / name).read_text())
        if document["kind"] == "Role"
        for rule in document["rules"]
    ]
