"""The packages of a call."""

from importlib.metadata import distributions
from pathlib import Path

import pytest

from prefect_ray_worker.adhoc.dependencies import frozen, requirements_of
from prefect_ray_worker.errors import InvalidConfiguration


def installed(folder: Path, name: str, version: str, url: str | None = None) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if url:
        (info / "direct_url.json").write_text(f'{{"url": "{url}"}}')


def test_freeze_leaves_out_what_nodes_cannot_or_must_not_install(tmp_path: Path) -> None:
    installed(tmp_path, "polars", "1.2")
    installed(tmp_path, "My_Own", "0.1", "file:///home/me/own")
    installed(tmp_path, "ray", "2.60.0")
    installed(tmp_path, "prefect_ray_worker", "0.1")
    assert frozen(distributions(path=[str(tmp_path)])) == ["polars==1.2"]


def test_freeze_names_what_is_imported_and_where_it_is_from(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, version in ((first, "2.2"), (second, "1.5")):
        folder.mkdir()
        installed(folder, "pandas", version)
    installed(second, "own", "1.0")
    (second / "own-1.0.dist-info" / "direct_url.json").write_text(
        '{"url": "https://git.example/own", "vcs_info": {"vcs": "git", "commit_id": "abc"}}'
    )
    found = frozen(distributions(path=[str(first), str(second)]))
    assert found == ["own @ git+https://git.example/own@abc", "pandas==2.2"]


def test_lists_are_taken_as_they_are() -> None:
    assert requirements_of(("polars", "numpy<3")) == ["polars", "numpy<3"]
    assert requirements_of("cluster") == []


def test_other_words_are_refused() -> None:
    with pytest.raises(InvalidConfiguration, match="'cluster', 'lock', 'freeze' or a list"):
        requirements_of("Freeze")


def test_lock_needs_a_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin" / "uv"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho '# comment'; echo polars==1.2; echo ray==2.60.0; echo ./own\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidConfiguration, match=r"needs a uv\.lock"):
        requirements_of("lock")
    (tmp_path / "uv.lock").touch()
    assert requirements_of("lock") == ["polars==1.2"]
