"""Names in the templates mean something: variables, settings, placeholders, links."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import ray
from prefect.settings import Settings
from prefect.settings.legacy import _get_valid_setting_names

from prefect_ray_worker.settings import RayWorkerSettings
from tests.templates.folders import FOLDERS, TEMPLATES, load

FILES = [
    path
    for path in sorted(TEMPLATES.rglob("*"))
    if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
]
CHECK = TEMPLATES / "check.py"
# Written for people, or generated from the code.
_TEXTS = [path for path in FILES if path.suffix != ".json"]
_VARIABLE = re.compile(r"\b(?:PREFECT|RAY)_[A-Z0-9_]+\b")
_OF_POSTGRES = re.compile(r"\bPOSTGRES_[A-Z]+\b")


def ours() -> set[str]:
    prefix = RayWorkerSettings.model_config.get("env_prefix", "")
    return {f"{prefix}{name.upper()}" for name in RayWorkerSettings.model_fields}


@cache
def words_of_ray() -> set[str]:
    """Return every word like a variable in Ray's own Python files."""
    package = Path(ray.__file__).parent
    folders = ("_private", "dashboard", "scripts")
    texts = (p.read_text(errors="ignore") for f in folders for p in (package / f).rglob("*.py"))
    return {word for text in texts for word in re.findall(r"\bRAY_[A-Z_]+\b", text)}


def used_by_a_script(name: str, folder: Path) -> bool:
    """Say whether a script, a unit or a Dockerfile of the folder reads a variable of its own."""
    return any(
        re.search(rf"\$\{{?{name}\b", path.read_text())
        for path in folder.iterdir()
        if path.is_file()
    )


@pytest.mark.parametrize("path", _TEXTS, ids=lambda p: str(p.relative_to(TEMPLATES)))
def test_variables_exist(path: Path) -> None:
    known = ours() | set(_get_valid_setting_names(Settings)) | words_of_ray()
    names = set(_VARIABLE.findall(re.sub(r"CHANGE_ME_\w+", "", path.read_text())))
    unknown = {name for name in names - known if not used_by_a_script(name, path.parent)}
    assert unknown == set()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_readme_says_what_when_and_how(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for word in ("What", "When", "Apply", "Check", "Remove"):
        assert f"**{word}.**" in text, f"{folder.name} does not say {word!r}"
    assert text.count("\n") < 60


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_namespace_is_created_before_it_is_used(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    used = text.find("$ kubectl -n ray create")
    assert used < 0 or 0 < text.find("$ kubectl create namespace ray") < used


def test_commands_do_not_fetch_this_package_before_there_is_a_release() -> None:
    if "no release on PyPI yet" not in (TEMPLATES.parent / "README.md").read_text():
        return
    fetched = re.compile(r"(?:--with|pip install|uv add)\s[^#\n`]*\bprefect-ray-worker(?![\w./-])")
    assert [path for path in _TEXTS if fetched.search(path.read_text())] == []


def test_all_folders_are_there_and_listed() -> None:
    promised = {
        "kuberay-existing-cluster", "kuberay-gpu", "kuberay-per-run", "kuberay-shared",
        "zero-capacity-node", "sidecar", "docker-compose", "vm", "prefect-yaml", "work-pool",
        "images", "helm", "monorepo-uv", "grafana",
    }  # fmt: skip
    assert {folder.name for folder in FOLDERS} == promised
    index = (TEMPLATES / "README.md").read_text()
    assert [name for name in sorted(promised) if f"({name}/README.md)" not in index] == []


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.name != "README.md"],
    ids=lambda p: str(p.relative_to(TEMPLATES)),
)
def test_what_is_left_open_is_written_in_one_way(path: Path) -> None:
    """Another way, `<your-key>` or `TODO`, would not be found before it is applied."""
    text = path.read_text()
    assert not re.search(r"TODO|FIXME|XXX|\byour-|REPLACE|<[a-z-]+>", text) or path.name in {
        "worker.Dockerfile", "main.tf",
    }  # fmt: skip
    pattern = load(CHECK).PLACEHOLDER
    assert all(pattern.match(word) for word in re.findall(r"CHANGE_ME\w*", text))


def check(*paths: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, CHECK, *paths], capture_output=True, text=True)


def test_placeholder_that_is_left_in_is_found_and_named() -> None:
    found = check(TEMPLATES / "vm")
    assert found.returncode == 1
    assert "worker.env:4: CHANGE_ME_PREFECT_API_KEY" in found.stdout
    assert "README" not in found.stdout


def test_output_in_the_readme_is_that_of_the_command() -> None:
    shown = (TEMPLATES / "README.md").read_text().partition("```console\n$ ")[2].partition("```")[0]
    command, _, output = shown.partition("\n")
    _, *words = command.split()
    found = subprocess.run(
        [sys.executable, *words], cwd=TEMPLATES, capture_output=True, text=True, check=False
    )
    assert found.stdout == output


def test_folder_that_is_filled_in_passes(tmp_path: Path) -> None:
    for path in (TEMPLATES / "vm").iterdir():
        text = re.sub(r"CHANGE_ME_[A-Z_]*[A-Z]", "something", path.read_text())
        (tmp_path / path.name).write_text(text)
    assert check(tmp_path).returncode == 0


def test_folder_that_is_not_there_is_said() -> None:
    missing = check(Path("no-such-folder"))
    assert missing.returncode == 2
    assert "There is no no-such-folder" in missing.stderr


@pytest.mark.parametrize("path", sorted(TEMPLATES.rglob("README.md")), ids=str)
def test_links_of_readmes_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)\)", path.read_text()):
        assert link.startswith("http") or (path.parent / link).exists(), link
