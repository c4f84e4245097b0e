"""`.ci/release.py`: a tag whose version or changelog does not fit is not released."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.templates.folders import load

ROOT = Path(__file__).parents[2]
SCRIPT = load(ROOT / ".ci" / "release.py")
_HEAD = "# Changelog\n\nAll of it.\n\n"
_GOOD = (
    "## [Unreleased]\n\n## [0.2.0] - 2026-11-30\n\n### Added\n\n- A thing.\n\n"
    "## [0.1.0] - 2026-01-01\n"
)


def checkout(folder: Path, changelog: str, version: str = "0.2.0") -> Path:
    (folder / "pyproject.toml").write_text(f'[project]\nname = "x"\nversion = "{version}"\n')
    (folder / "CHANGELOG.md").write_text(_HEAD + changelog)
    return folder


def test_notes_are_the_section_of_the_version(tmp_path: Path) -> None:
    assert SCRIPT.notes("v0.2.0", checkout(tmp_path, _GOOD)) == "### Added\n\n- A thing.\n"


@pytest.mark.parametrize(
    ("tag", "version", "changelog", "says"),
    [
        ("0.2.0", "0.2.0", _GOOD, "not a tag of a release"),
        ("v0.2.0; true", "0.2.0", _GOOD, "not a tag of a release"),
        ("v0.3.0", "0.2.0", _GOOD, "pyproject.toml has version 0.2.0"),
        ("v0.2.0", "0.2.0", _GOOD.replace("ed]\n", "ed]\n\n- Late.\n", 1), "under Unreleased"),
        ("v0.3.0", "0.3.0", _GOOD, "has no section [0.3.0]"),
        ("v0.2.0", "0.2.0", _GOOD.replace(" - 2026-11-30", ""), "needs a date"),
        ("v0.2.0", "0.2.0", _GOOD.replace("11-30", "11-31"), "needs a date"),
        ("v0.1.0", "0.1.0", _GOOD, "is empty"),
        ("v0.2.0", "0.2.0", _GOOD + "## [0.2.0] - 2026-11-30\n", "more than once"),
    ],
)
def test_tag_that_does_not_fit_is_refused(
    tag: str, version: str, changelog: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(SCRIPT.NotReady, match=re.escape(says)):
        SCRIPT.notes(tag, checkout(tmp_path, changelog, version))


def test_command_says_what_is_wrong_and_fails() -> None:
    command = [sys.executable, ROOT / ".ci" / "release.py", "v99.0.0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("The tag is v99.0.0, and pyproject.toml has version ")


def test_changelog_of_this_checkout_can_be_read() -> None:
    sections = SCRIPT._sections((ROOT / "CHANGELOG.md").read_text())
    assert "[Unreleased]" in sections
