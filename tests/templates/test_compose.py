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
def test_service_has_no_capabilities_that_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "cap_add" not in service or name == "postgres"


@pytest.mark.parametrize("name", ["POSTGRES_PASSWORD", "RAY_AUTH_TOKEN"])
def test_secret_has_no_default_and_its_absence_is_an_error(name: str) -> None:
    uses = re.findall(rf"\$\{{?{name}[^}}]*\}}?", FILE.read_text())
    assert uses
    assert [use for use in uses if not use.startswith(f"${{{name}:?")] == []
    assert f"{name}=" in (FILE.parent / "README.md").read_text()


@pytest.mark.parametrize("name", ["ray-head", "ray-worker", "worker"])
def test_ray_and_its_client_use_the_token(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")


def test_health_of_the_head_needs_no_token() -> None:
    from ray.dashboard import http_server_head

    (path,) = re.findall(r"8265(/[\w/]+)'", " ".join(SERVICES["ray-head"]["healthcheck"]["test"]))
    assert f'"{path}"' in Path(http_server_head.__file__).read_text().partition("whitelisted")[0]


def test_worker_image_has_the_versions_that_were_tested() -> None:
    text = (TEMPLATES / "images" / "worker.Dockerfile").read_text()
    assert "--constraint /src/constraints.txt" in text


def test_worker_image_can_be_built_from_a_released_wheel() -> None:
    """The release workflow puts a context of the stage's name in its place."""
    text = (TEMPLATES / "images" / "worker.Dockerfile").read_text()
    assert re.search(r"^FROM \S+ AS wheel$", text, re.MULTILINE)
    assert "COPY --from=wheel /prefect_ray_worker-*.whl" in text
    # Nothing of the checkout's code gets past that stage.
    after = text.rpartition("\nFROM ")[2]
    assert re.findall(r"^COPY (?!--from)(.+) \S+$", after, re.MULTILINE) == ["constraints.txt"]


def test_files_with_images_say_how_to_pin_them() -> None:
    files = [*TEMPLATES.rglob("*.Dockerfile"), *TEMPLATES.rglob("*.yaml")]
    with_images = [f for f in files if re.search(r"^FROM |^\s+image: ", f.read_text(), re.M)]
    missing = [f for f in with_images if "@sha256:" not in f.read_text()]
    assert missing == []


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
    # What comes from another stage is not in the context.
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile.read_text(), re.MULTILINE):
        for source in sources.split():
            assert (context / source).exists(), source
            assert f"!{source}" in (context / ".dockerignore").read_text().split()


def test_image_of_the_nodes_can_have_this_package() -> None:
    """The flows of a Prefect process worker import it, and nothing sends it."""
    text = (TEMPLATES / "images" / "ray.Dockerfile").read_text()
    sources = re.findall(r"^# COPY (.+) /src/", text, re.MULTILINE)
    assert "prefect_ray_worker" in sources
    context = (ROOT / ".dockerignore").read_text().split()
    assert {f"!{name}" for source in sources for name in source.split()} <= set(context)
    for folder in ("zero-capacity-node", "sidecar"):
        assert "ray.Dockerfile" in (TEMPLATES / folder / "README.md").read_text()


def test_arguments_of_builds_in_readmes_exist() -> None:
    arguments = re.findall(r"^ARG (\w+)=", _text(TEMPLATES / "images"), re.MULTILINE)
    readmes = [path.read_text() for path in TEMPLATES.glob("*/README.md")]
    named = [name for text in readmes for name in re.findall(r"--build-arg (\w+)=", text)]
    assert "BASE" in named
    assert set(named) <= set(arguments)
    assert "FROM ${BASE}\n" in (TEMPLATES / "images" / "ray.Dockerfile").read_text()


def test_versions_of_images_and_services_agree() -> None:
    images = TEMPLATES / "images"
    versions = dict(re.findall(r"^ARG (\w+)=(\S+)$", _text(images), re.MULTILINE))
    ray, prefect = versions["RAY_VERSION"], versions["PREFECT_VERSION"]
    assert SERVICES["ray-head"]["image"].endswith(f":{ray}-{prefect}")
    assert SERVICES["server"]["image"].startswith(f"prefecthq/prefect:{prefect}-python3.")


def _text(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.Dockerfile")))
