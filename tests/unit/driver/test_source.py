"""Why a flow could not be loaded, from what Prefect really raises."""

import shutil
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import Flow
from prefect.client.schemas.objects import FlowRun
from prefect.flows import load_flow_from_entrypoint

from prefect_ray_worker.driver.source import BundleSource, Workspace, of_load_failure
from prefect_ray_worker.shared.category import Category

FILES = {
    "imports.py": "import no_such_module.part",
    "opens.py": "open('no-such-file')",
    "raises.py": "raise ValueError('boom')",
    "typo.py": "from json import no_such_name",
    "plain.py": "def function(): pass",
    "package_of_mine.py": "import no_such_module",
}


@pytest.mark.parametrize(
    ("entrypoint", "category", "says"),
    [
        ("imports.py:any", Category.MODULE_NOT_FOUND, "did not find the module 'no_such_module'"),
        ("nowhere.py:any", Category.ENTRYPOINT_NOT_FOUND, "'nowhere.py:any' leads to no flow"),
        ("plain.py:other", Category.ENTRYPOINT_NOT_FOUND, "Flow function with name 'other'"),
        ("plain.py:function", Category.ENTRYPOINT_NOT_FOUND, "is not a flow"),
        ("no_such.place:any", Category.ENTRYPOINT_NOT_FOUND, "'no_such.place:any' leads to"),
        ("no_such.place.any", Category.ENTRYPOINT_NOT_FOUND, "'no_such.place.any' leads to"),
        ("json.no_such:any", Category.ENTRYPOINT_NOT_FOUND, "'json.no_such:any' leads to"),
        # Of the flow's own doing, although it looks alike.
        ("package_of_mine:any", Category.MODULE_NOT_FOUND, "module 'no_such_module'"),
        ("opens.py:any", Category.FLOW_NOT_LOADED, "no-such-file"),
        ("raises.py:any", Category.FLOW_NOT_LOADED, "boom"),
        ("typo.py:any", Category.FLOW_NOT_LOADED, "no_such_name"),
    ],
)
def test_why(
    entrypoint: str,
    category: Category,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Exception) as caught:
        load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    found = of_load_failure(caught.value, entrypoint)
    assert found.category is category
    assert says in found.cause
    assert "The flow could not be loaded: " in found.cause
    assert f"{found.cause} {found.advice}" in str(found)
    assert found.cause.endswith("."), "the advice follows in the same line"


def test_a_pull_step_that_fails_is_not_the_entrypoints_fault() -> None:
    found = of_load_failure(FileNotFoundError(2, "No such file", "git"), None)
    assert found.category is Category.FLOW_NOT_LOADED


def test_a_clone_that_fails_shows_no_token() -> None:
    error = RuntimeError("clone of https://oauth2:gl/pat@secret@git.example/me/repo.git failed")
    cause = of_load_failure(error, None).cause
    assert "https://***@git.example/me/repo.git" in cause
    assert "secret" not in cause


class _Here(BundleSource):
    """Needs nothing from elsewhere."""

    def fetch(self, flow_run: FlowRun, folder: Path) -> None:
        (folder / "of-root").touch()

    def load(self, flow_run: FlowRun) -> Flow[..., Any]:
        return Flow(lambda: None, name="here")


RUN = FlowRun(id=uuid4(), flow_id=uuid4())


def test_a_folder_that_cannot_be_removed_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A container that the flow had started left a file of root, and the driver a traceback."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "")
    with caplog.at_level("DEBUG", "prefect.ray.driver"), Workspace(RUN, _Here()) as workspace:
        workspace.open_flow()
        (left,) = tmp_path.iterdir()
        monkeypatch.setattr(shutil, "rmtree", refuse)
    assert f"{left} could not be removed" in caplog.text
    assert left.exists()


def test_a_full_disk_is_found_where_the_flow_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended the driver with exit code 1: only what `open_flow` raises is explained."""

    def full(*_: Any, **__: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with Workspace(RUN, _Here()) as workspace, pytest.raises(OSError, match="No space left"):
        workspace.open_flow()
