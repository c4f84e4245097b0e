"""What of the flow's code is shipped, and what never is."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from prefect_ray_worker.task_runner import code


@pytest.mark.parametrize("folder", [Path("/"), Path.home(), Path("/tmp"), Path("/dev/shm")])
def test_some_folders_are_never_shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    assert code.why_not(folder) is not None


def test_a_folder_with_rays_session_directory_is_never_shipped(tmp_path: Path) -> None:
    """The upload packed itself until the disk was full."""
    (tmp_path / "ray" / "session_1").mkdir(parents=True)
    (tmp_path / "ray" / "session_latest").symlink_to(tmp_path / "ray" / "session_1")
    assert "session directory of a Ray" in (code.why_not(tmp_path) or "")


def test_a_flow_given_as_a_module_brings_the_folder_it_is_imported_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own driver's folder was shipped, and shadowed modules of the flow."""
    (tmp_path / "project" / "flows").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "project" / "flows" / "nightly.py"
    file.touch()
    monkeypatch.chdir(tmp_path / "elsewhere")
    module = ModuleType("flows.nightly")
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "flows.nightly", module)
    monkeypatch.setenv("PREFECT__FLOW_ENTRYPOINT", "flows.nightly:main")
    assert code.entry_file() == file
    shipped = code.for_cluster({}, None, in_job=True)
    assert shipped.runtime_env == {"working_dir": str(tmp_path / "project")}
    assert shipped.paths[0] == "."


@pytest.mark.parametrize("main", [code.__file__, str(Path(sys.executable).parent / "prefect")])
def test_a_command_is_not_the_flows_file(main: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT__FLOW_ENTRYPOINT", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", main, raising=False)
    assert code.entry_file() is None


def test_installed_packages_are_not_shipped() -> None:
    import prefect

    assert "installed packages" in (code.why_not(Path(prefect.__file__).parent) or "")


def test_ignored_files_are_not_shipped_and_big_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".gitignore").write_text("ignored/\n")
    (tmp_path / ".rayignore").write_text("*.bin\n")
    (tmp_path / "ignored").mkdir()
    for name in ("ignored/a.py", "b.bin", "c.py", "d.dat"):
        (tmp_path / name).write_bytes(b"x" * 2_000_000)
    files = code.files_to_ship(tmp_path)
    assert {f for f in files if not f.startswith(".")} == {"c.py", "d.dat"}
    assert code.why_not(tmp_path) is None
    monkeypatch.setattr(code, "_MOST_BYTES", 3_000_000)
    refusal = code.why_not(tmp_path) or ""
    assert "c.py (1.9 MiB)" in refusal
    assert "ship_code=False" in refusal


def test_environments_are_merged() -> None:
    job = {"pip": ["a"], "env_vars": {"A": "1", "B": "1"}, "py_modules": ["gcs://x.zip"]}
    own = {"env_vars": {"B": "2"}, "py_modules": ["y"]}
    assert code.merged(job, own, {"working_dir": "/w"}) == {
        "pip": ["a"],
        "env_vars": {"A": "1", "B": "2"},
        "py_modules": ["gcs://x.zip", "y"],
        "working_dir": "/w",
    }


def test_a_flow_from_the_jobs_working_dir_needs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "working_dir_files" / "_ray_pkg_1" / "flows"
    folder.mkdir(parents=True)
    (folder / "flow.py").touch()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PREFECT__FLOW_ENTRYPOINT", "flow.py:main")
    shipped = code.for_cluster({"working_dir": "gcs://job.zip"}, None, in_job=True)
    assert shipped.runtime_env == {}
    assert "flows" in shipped.paths


def test_a_working_dir_without_the_flow_becomes_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT__FLOW_ENTRYPOINT", "some.module:flow")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", None, raising=False)
    job = {"working_dir": "gcs://job.zip", "py_modules": ["gcs://driver.zip"]}
    shipped = code.for_cluster(job, None, in_job=True)
    assert shipped.runtime_env == {
        "working_dir": str(tmp_path),
        "py_modules": ["gcs://driver.zip", "gcs://job.zip"],
    }


def test_the_users_own_working_dir_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = {"working_dir": "s3://mine.zip"}
    assert code.for_cluster({}, own, in_job=True).runtime_env == own


def test_a_job_without_one_gets_the_flows_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "flow.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT__FLOW_ENTRYPOINT", "flows/flow.py:main")
    shipped = code.for_cluster({"pip": ["a"]}, {"env_vars": {"A": "1"}}, in_job=True)
    assert shipped.runtime_env == {
        "pip": ["a"],
        "env_vars": {"A": "1"},
        "working_dir": str(tmp_path),
    }
    assert shipped.paths[:2] == [".", "flows"]
