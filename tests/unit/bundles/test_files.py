"""Which files `include_files` sends, and which it never does by accident."""

from pathlib import Path

import pytest

from prefect_ray_worker.bundles.files import included_files
from prefect_ray_worker.errors import BundleRefused


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name in ("config.yaml", "data/a.csv", "data/b.csv", "data/__pycache__/x.pyc", "big.bin"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def names(project: Path, *patterns: str) -> list[str]:
    return sorted(p.relative_to(project).as_posix() for p in included_files([*patterns], project))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["config.yaml"], ["config.yaml"]),
        (["data"], ["data/a.csv", "data/b.csv"]),
        (["data/*.csv", "!data/b.csv"], ["data/a.csv"]),
        (["**/*.csv", "*.yaml"], ["config.yaml", "data/a.csv", "data/b.csv"]),
    ],
)
def test_files_of_patterns(project: Path, patterns: list[str], expected: list[str]) -> None:
    assert names(project, *patterns) == expected


def test_ignored_files_stay_unless_they_are_written_out(project: Path) -> None:
    (project / ".prefectignore").write_text("*.bin\n")
    assert names(project, "*.bin", "config.yaml") == ["config.yaml"]
    assert names(project, "big.bin") == ["big.bin"]


@pytest.mark.parametrize("name", [".env", ".env.local", "tls.pem", "id_rsa"])
def test_what_looks_like_a_secret_has_to_be_written_out(project: Path, name: str) -> None:
    (project / name).write_text("secret")
    with pytest.raises(BundleRefused, match="looks like a secret"):
        included_files(["."], project)
    assert name in names(project, name)
    assert name not in names(project, ".", f"!{name}")


@pytest.mark.parametrize("pattern", ["../other", "/etc/passwd", "data/../../x"])
def test_nothing_from_outside_the_folder(project: Path, pattern: str) -> None:
    with pytest.raises(BundleRefused, match="leads out of"):
        included_files([pattern], project)


def test_no_link_to_a_file_outside(project: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    (project / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleRefused, match="a link to a file outside"):
        included_files(["link"], project)


def test_link_that_is_not_sent_may_lead_anywhere(project: Path, tmp_path: Path) -> None:
    """A virtual environment has one, and made `.` a refusal that named only `python`."""
    (tmp_path / "outside").write_text("x")
    (project / ".venv" / "bin").mkdir(parents=True)
    for link in (project / ".venv" / "bin" / "python", project / "data" / "link"):
        link.symlink_to(tmp_path / "outside")
    assert "data/link" not in names(project, ".", "!data/link")
    with pytest.raises(BundleRefused, match=r"matches data/link, .*or leave it out"):
        included_files(["."], project)


def test_pattern_without_a_file_is_named(project: Path) -> None:
    with pytest.raises(BundleRefused, match=r"'confg.yaml', and .* has no such file"):
        included_files(["confg.yaml"], project)
