"""The compose file: by the specification, pinned, open to this machine only."""

import re
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from tests.templates.folders import ROOT, TEMPLATES

FILE = TEMPLATES / "docker-compose" / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]


def merged(text: str) -> str:
    """Return a file with YAML's merge keys resolved, as `docker compose config` does."""
    return yaml.safe_dump(yaml.safe_load(text))


def test_file_keeps_the_specification() -> None:
    compose = compose_spec.PyCompose.from_yaml(merged(FILE.read_text()))
    assert set(compose.service_names()) == {
        "postgres", "server", "ray-head", "ray-worker", "worker",
    }  # fmt: skip


@pytest.mark.parametrize("mistake", ["healthcheckk: {test: true}", "restart: sometimes"])
def test_mistake_is_refused(mistake: str) -> None:
    spoilt = yaml.safe_load(FILE.read_text())
    spoilt["services"]["worker"].update(yaml.safe_load(mistake))
    with pytest.raises(Exception, match=r"healthcheckk|sometimes"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(spoilt))


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_pinned_bounded_and_not_open_to_others(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":[\w.-]*\d+\.\d+", service["image"])
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert service["restart"] == "unless-stopped"
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_service_waits_for_what_it_needs(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[other]


@pytest.mark.parametrize("name", [name for name in SERVICES if "build" in SERVICES[name]])
def test_what_is_built_is_there(name: str) -> None:
    build = SERVICES[name]["build"]
    context = (FILE.parent / build["context"]).resolve()
    assert context == ROOT
    dockerfile = context / build["dockerfile"]
    for sources in re.findall(r"^COPY (.+) \S+$", dockerfile.read_text(), re.MULTILINE):
        for source in sources.split():
            assert (context / source).exists(), source
            assert f"!{source}" in (context / ".dockerignore").read_text().split()


def test_versions_of_images_and_services_agree() -> None:
    images = TEMPLATES / "images"
    versions = dict(re.findall(r"^ARG (\w+)=(\S+)$", _text(images), re.MULTILINE))
    ray, prefect = versions["RAY_VERSION"], versions["PREFECT_VERSION"]
    assert SERVICES["ray-head"]["image"].endswith(f":{ray}-{prefect}")
    assert SERVICES["server"]["image"].startswith(f"prefecthq/prefect:{prefect}-python3.")


def _text(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.Dockerfile")))
