"""The house rules that a machine can check."""

import ast
import importlib
import subprocess
import sys
import tomllib
from functools import cache
from operator import attrgetter
from pathlib import Path

import pytest

import prefect_ray_worker
from prefect_ray_worker._version import OLDEST_PREFECT, OLDEST_PYTHON, OLDEST_RAY
from prefect_ray_worker.prefect_api import compat
from prefect_ray_worker.prefect_api.compat import workers
from tests.forks import Forks

ROOT = Path(__file__).parents[2]
PACKAGE = sorted((ROOT / "prefect_ray_worker").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_files_and_functions_stay_small() -> None:
    too_long: list[str] = []
    for path in (*PACKAGE, *TESTS):
        name, lines = str(path.relative_to(ROOT)), path.read_text().count("\n")
        too_long += [f"{name} has {lines} lines"] if lines > 400 else []
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                too_long += [f"{name}: {node.name} has {length} lines"] if length > 60 else []
    assert too_long == []


def test_public_names_are_what_is_promised() -> None:
    promised = [
        "RayCluster", "RayTaskRunner", "RayWorker", "__version__", "ray_job", "remote_options",
    ]  # fmt: skip
    assert sorted(prefect_ray_worker.__all__) == promised
    for name in prefect_ray_worker.__all__:
        assert getattr(prefect_ray_worker, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = prefect_ray_worker.Nonsense


def test_oldest_versions_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = {name: f">={major}.{minor}" for name, (major, minor) in {
        "python": OLDEST_PYTHON, "prefect": OLDEST_PREFECT, "ray[default]": OLDEST_RAY,
    }.items()}  # fmt: skip
    assert project["requires-python"] == oldest["python"]
    for package in ("prefect", "ray[default]"):
        declared = [d for d in project["dependencies"] if d.startswith(package + ">")]
        assert [d.partition(",")[0] for d in declared] == [package + oldest[package]]


def test_links_of_worker_type_and_block_are_the_one_of_pyproject() -> None:
    from prefect_ray_worker import RayCluster, RayWorker

    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert RayWorker.get_documentation_url() == urls.get("Documentation", "")
    assert str(RayCluster._documentation_url or "") == urls.get("Documentation", "")


def test_importing_the_package_imports_nothing_else() -> None:
    script = (
        "import sys, prefect_ray_worker\n"
        "print([m for m in ('prefect', 'ray', 'httpx', 'pydantic') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_worker_imports_neither_ray_nor_what_only_kuberay_needs(forks: Forks) -> None:
    script = (
        "import sys, prefect_ray_worker.worker\n"
        "heavy = ('ray', 'lightkube', 'httpx2', 'msgspec', 'prefect_ray_worker.kubernetes_api')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    assert forks.run(script)[0].strip() == "[]"


@pytest.mark.parametrize("name", workers.OVERRIDDEN)
def test_private_member_of_prefect_that_we_define_is_still_read(name: str) -> None:
    from prefect.workers.base import BaseWorker

    assert hasattr(BaseWorker, name)


@pytest.mark.parametrize("name", compat.READ)
def test_private_name_of_prefect_that_the_driver_reads_is_still_there(name: str) -> None:
    module, _, attribute = name.partition(":")
    assert attrgetter(attribute)(importlib.import_module(module)) is not None


def test_private_names_of_prefect_that_we_read_are_still_there() -> None:
    from prefect_ray_worker.worker import RayWorker

    worker = RayWorker("any-pool")
    assert workers.exit_stack(worker) is not None
    assert workers.worker_logger(worker) is not None
    related = workers.related_resources(worker, worker.job_configuration())
    assert [resource.role for resource in related] == ["worker"]


def test_private_names_of_prefect_stay_in_one_place() -> None:
    for path in PACKAGE:
        if path.parent.name == "compat":
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prefect."):
                parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                assert not [p for p in parts if p.startswith("_")], path


def test_no_class_name_stands_for_two_things() -> None:
    homes: dict[str, list[str]] = {}
    for path in PACKAGE:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name.lstrip("_"), []).append(str(path.relative_to(ROOT)))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_the_root_has_at_most_ten_files() -> None:
    assert len(list((ROOT / "prefect_ray_worker").glob("*.py"))) <= 10
