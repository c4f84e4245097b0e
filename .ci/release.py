"""Checks that a tag can be released, and prints its section of the changelog.

    python .ci/release.py v0.2.0

The tag must name the version in pyproject.toml, and CHANGELOG.md must have a dated section for that
version and nothing under Unreleased. Standard library only.
"""

import re
import sys
import tomllib
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
_VERSION = r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?"


class NotReady(Exception):
    """The tag cannot be released; the message says what to change."""


def notes(tag: str, root: Path = ROOT) -> str:
    """Return what the changelog says of the version of a tag.

    Args:
        tag: `v` and the version.
        root: The checkout.

    Raises:
        NotReady: The tag, pyproject.toml and CHANGELOG.md do not agree.
    """
    if not re.fullmatch(f"v{_VERSION}", tag):
        raise NotReady(f"{tag!r} is not a tag of a release. Write v1.2.3, or v1.2.3rc1.")
    version = tag.removeprefix("v")
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    if project["version"] != version:
        raise NotReady(
            f"The tag is {tag}, and pyproject.toml has version {project['version']}. Set the "
            "version, commit, and tag that commit."
        )
    sections = _sections((root / "CHANGELOG.md").read_text())
    if sections.get("[Unreleased]", "").strip():
        raise NotReady(f"CHANGELOG.md has entries under Unreleased. Move them to [{version}].")
    headings = [heading for heading in sections if heading.startswith(f"[{version}]")]
    if not headings:
        raise NotReady(f"CHANGELOG.md has no section [{version}]. Add `## [{version}] - DATE`.")
    (heading,) = headings
    _check_date(heading, version)
    if not (said := sections[heading].strip()):
        raise NotReady(f"The section [{version}] of CHANGELOG.md is empty.")
    return said + "\n"


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    headings = [heading.strip() for heading in parts[1::2]]
    if doubled := {heading for heading in headings if headings.count(heading) > 1}:
        raise NotReady(f"CHANGELOG.md has {', '.join(sorted(doubled))} more than once.")
    return dict(zip(headings, parts[2::2], strict=True))


def _check_date(heading: str, version: str) -> None:
    said = heading.removeprefix(f"[{version}]").removeprefix(" - ")
    try:
        date.fromisoformat(said)
    except ValueError:
        raise NotReady(
            f"The heading of [{version}] in CHANGELOG.md needs a date: `## [{version}] - "
            "2026-01-31`."
        ) from None


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("Usage: python .ci/release.py TAG", file=sys.stderr)
        return 2
    try:
        print(notes(arguments[0]), end="")
    except NotReady as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
