"""The documentation agrees with the code, with itself and with the files that it names."""

import importlib.util
import inspect
import io
import re
from pathlib import Path
from types import ModuleType

import pytest
from prefect.cli.deploy._config import _load_deploy_configs_and_actions
from rich.console import Console

from prefect_ray_worker import errors
from prefect_ray_worker._version import OLDEST_PYTHON, OLDEST_RAY
from prefect_ray_worker.config import configuration
from prefect_ray_worker.settings import RayWorkerSettings
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.worker import RayWorker

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
REFERENCE = DOCS / "reference"
GENERATED = {
    DOCS / "tutorial" / "from-a-notebook.md",
    *(
        REFERENCE / f"{name}.md"
        for name in (
            "cli",
            "compatibility",
            "diagnosis",
            "events",
            "job-variables",
            "messages",
            "metrics",
            "settings",
        )
    ),
}
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# A folder of this project and what is in it, or a file with one of our suffixes.
_PATH = re.compile(
    r"(?<![\w./:-])((?:docs|tests|prefect_ray_worker|\.github|\.ci)/[\w./-]*\w"
    r"|[\w-]+\.(?:md|toml|txt))\b"
)
_TARGET = re.compile(r"\bmake ([a-z][a-z-]*)")


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", REFERENCE / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _prose(page: Path) -> str:
    """Return a page without its fenced blocks: in those, brackets are code."""
    return _FENCE.sub("", page.read_text())


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in _HEADING.findall(_prose(page))
    }


def _written_by_hand() -> str:
    return "\n".join(page.read_text() for page in PAGES if page not in GENERATED)


def test_generated_pages_are_those_of_the_code() -> None:
    for name, page in _generator().PAGES.items():
        assert (REFERENCE / name).read_text() == page(), f"{name} is stale: run `make docs`"


def test_every_generated_page_is_known_here() -> None:
    assert {(REFERENCE / name).resolve() for name in _generator().PAGES} == GENERATED


@pytest.mark.parametrize(
    "name", RayWorker.get_default_base_job_template()["variables"]["properties"]
)
def test_job_variable_is_explained_beyond_its_reference(name: str) -> None:
    assert re.search(rf"`{name}`", _written_by_hand())


@pytest.mark.parametrize("name", RayWorkerSettings.model_fields)
def test_setting_is_explained_beyond_its_reference(name: str) -> None:
    prefix = RayWorkerSettings.model_config.get("env_prefix", "")
    assert f"`{prefix}{name.upper()}`" in _written_by_hand()


def test_every_error_is_in_the_reference() -> None:
    page = (REFERENCE / "errors.md").read_text()
    ours = [
        name
        for name, thing in inspect.getmembers(errors, inspect.isclass)
        if thing.__module__ == errors.__name__
    ]
    assert ours
    assert [name for name in ours if f"| `{name}` |" not in page] == []


def test_every_exit_code_of_the_driver_is_in_the_reference() -> None:
    page = (REFERENCE / "metadata.md").read_text()
    assert [code for code in DriverExit if f"| {code.value} |" not in page] == []


@pytest.mark.parametrize(
    "name", [path.name for path in sorted((DOCS / "examples" / "automations").iterdir())]
)
def test_automation_in_the_guide_is_the_one_that_is_tested(name: str) -> None:
    guide = DOCS / "how-to" / "debug-a-run.md"
    shown = [block for block in _FENCE.findall(guide.read_text()) if "trigger:" in block]
    example = DOCS / "examples" / "automations" / name
    lines = [line for line in example.read_text().splitlines() if "#" not in line]
    assert lines[1:] in [block.splitlines()[1:-1] for block in shown]


@pytest.mark.parametrize("entrypoint", [configuration._DRIVER, configuration._PREFECTS_OWN])
def test_entrypoint_is_in_the_reference(entrypoint: str) -> None:
    assert f"exec {entrypoint}" in (REFERENCE / "metadata.md").read_text()


def test_every_room_is_in_the_architecture() -> None:
    page = (DOCS / "explanation" / "architecture.md").read_text()
    package = ROOT / "prefect_ray_worker"
    rooms = {p.stem for p in package.glob("*.py")} - {"__init__", "__main__", "_version"}
    wings = {f"{p.parent.name}/" for p in package.glob("*/__init__.py")}
    assert [name for name in sorted(rooms | wings) if f"**`{name}`**" not in page] == []


def test_files_that_the_architecture_names_exist() -> None:
    """A reader opens what the page names: `folder/` or `folder/module` of the package."""
    page = (DOCS / "explanation" / "architecture.md").read_text()
    table = page.partition("## From a symptom to a file")[2].partition("\n## ")[0]
    cells = [line.split("|")[2] for line in table.splitlines() if line.startswith("|")][2:]
    named = {name for cell in cells for name in _CODE.findall(cell)}
    wings = {path.parent.name for path in (ROOT / "prefect_ray_worker").glob("*/__init__.py")}
    named |= {
        name for name in re.findall(r"(?<![\w./-])\w+/[\w/]*", page) if name.split("/")[0] in wings
    }
    assert {"runs/explain", "logs/position", "clusters/choice", "runs/recovery/"} <= named
    paths = {name: ROOT / "prefect_ray_worker" / name for name in sorted(named)}
    assert [
        name
        for name, path in paths.items()
        if not (path.is_dir() if name.endswith("/") else path.with_suffix(".py").is_file())
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    for link in _LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} does not exist"
        assert target.is_relative_to(ROOT), f"{link} leaves the project"
        if anchor:
            assert anchor in _anchors(target), f"{link}: no such heading"


def test_every_page_is_in_the_index() -> None:
    index = DOCS / "README.md"
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in _LINK.findall(_prose(index))}
    assert [page for page in DOCS.rglob("*.md") if page not in {index, *linked}] == []


def test_files_that_the_readme_names_exist() -> None:
    text = README.read_text()
    named = set(_PATH.findall(text))
    assert "docs/how-to/troubleshoot.md" in named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_make_targets_that_the_docs_name_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for code in _commands(README) for target in _TARGET.findall(code)}
    assert {"quickstart", "test", "check"} <= named
    assert named <= targets


def _commands(page: Path) -> list[str]:
    """Return what a page shows as code: spans, fenced blocks and indented lines."""
    text = page.read_text()
    indented = [line for line in text.splitlines() if line.startswith("    ")]
    return [*_FENCE.findall(text), *_CODE.findall(_FENCE.sub("", text)), *indented]


@pytest.mark.parametrize(
    "page", ["README.md", "docs/how-to/connect-a-cluster.md", "docs/how-to/dependencies.md"]
)
def test_pages_that_one_starts_with_say_what_the_nodes_need(page: str) -> None:
    text = (ROOT / page).read_text()
    ray, python = (".".join(map(str, version)) for version in (OLDEST_RAY, OLDEST_PYTHON))
    assert re.search(rf"needs? Ray {ray}(,| and) Python {python} ", text)
    assert f"-py{python.replace('.', '')}" in text


def test_readme_is_short_enough_to_be_read() -> None:
    assert README.read_text().count("\n") <= 130


def test_example_of_results_in_the_guide_is_the_one_that_is_tested() -> None:
    guide = (DOCS / "how-to" / "keep-results.md").read_text()
    code = (DOCS / "examples" / "results" / "flow.py").read_text().partition("\n\n")[2]
    assert code.strip() in guide


def test_deploy_of_the_quickstart_finds_its_config_file() -> None:
    """Without a `prefect.yaml`, `prefect deploy` warns that it cannot read it (3.8.8)."""
    folder, said = DOCS / "examples" / "quickstart", io.StringIO()
    (deployment,), _ = _load_deploy_configs_and_actions(
        folder / "prefect.yaml", console=Console(file=said)
    )
    assert said.getvalue() == ""
    file, _, flow = deployment["entrypoint"].partition(":")
    assert f"def {flow}(" in (folder / file).read_text()
    for page in (README.read_text(), (DOCS / "tutorial" / "first-run.md").read_text()):
        assert "prefect --no-prompt deploy --all" in page
        assert f"{flow.replace('_', '-')}/{deployment['name']} --watch" in page
        assert f"--pool {deployment['work_pool']['name']}" in page


def test_claims_of_the_security_model_name_tests_that_exist() -> None:
    named = re.findall(
        r"`([\w/]+\.py)::(\w+)`", (DOCS / "explanation/security-model.md").read_text()
    )
    assert named
    for path, test in named:
        assert f"def {test}(" in (ROOT / "tests" / path).read_text(), f"{path} has no {test}"
