"""Which runs may be forked from the same process."""

import os
from pathlib import Path

import pytest

from prefect_ray_worker.driver.supervise.fingerprint import fingerprint_of_process

BASE = {"PATH": "/bin", "PREFECT_API_KEY": "one", "HOME": "/root"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_is_the_same_for_runs_of_one_environment() -> None:
    per_run = {
        "PREFECT__FLOW_RUN_ID": "a",
        "RAY_JOB_ID": "01",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    assert fingerprint_of_process(7, BASE) == fingerprint_of_process(7, {**BASE, **per_run})


@pytest.mark.parametrize(
    "other",
    [{"PREFECT_API_KEY": "two"}, {"MY_SECRET": "x"}, {"PYTHONPATH": "/lib"}, {"TZ": "UTC"}],
    ids=str,
)
def test_differs_with_any_other_variable(other: dict[str, str]) -> None:
    """So a process never holds a credential that the runs forked from it do not have."""
    assert fingerprint_of_process(7, BASE) != fingerprint_of_process(7, {**BASE, **other})


def test_differs_with_the_node_and_the_folder(folder: Path) -> None:
    here = fingerprint_of_process(7, BASE)
    assert fingerprint_of_process(8, BASE) != here
    (folder / "sub").mkdir()
    os.chdir(folder / "sub")
    assert fingerprint_of_process(7, BASE) != here


@pytest.mark.parametrize("name", ["prefect.toml", ".env", "pyproject.toml"])
def test_differs_when_a_file_of_settings_has_changed(folder: Path, name: str) -> None:
    before = fingerprint_of_process(7, BASE)
    (folder / name).write_text("")
    written = fingerprint_of_process(7, BASE)
    os.utime(folder / name, ns=(1, 1))
    assert len({before, written, fingerprint_of_process(7, BASE)}) == 3


@pytest.mark.parametrize(
    "variables",
    [
        {"PREFECT_LOGGING_CONFIG_PATH": "logging.yml"},
        {"PREFECT_LOGGING_SETTINGS_PATH": "logging.yml"},
        {"PREFECT_LOGGING_SETTINGS_PATH": "b", "PREFECT_LOGGING_CONFIG_PATH": "logging.yml"},
        {"PREFECT_HOME": "."},
        {"PREFECT_HOME": "~"},
    ],
    ids=str,
)
def test_differs_when_the_logging_configuration_has_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    before = fingerprint_of_process(7, {**BASE, **variables})
    (folder / "logging.yml").write_text("")
    assert fingerprint_of_process(7, {**BASE, **variables}) != before


def test_differs_when_a_package_is_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = folder / "site-packages"
    packages.mkdir()
    monkeypatch.syspath_prepend(str(folder))  # the first entry is not looked at
    monkeypatch.setattr("sys.path", ["", str(packages)])
    before = fingerprint_of_process(7, BASE)
    (packages / "new-1.0.dist-info").mkdir()
    assert fingerprint_of_process(7, BASE) != before
