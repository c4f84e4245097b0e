"""The documentation as a site: complete, and with no link that leads nowhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docs.test_docs import DOCS, ROOT

_CONFIG = ROOT / "mkdocs.yml"


def _nav() -> list[str]:
    section = _CONFIG.read_text().partition("\nnav:\n")[2]
    return re.findall(r"(\S+\.md)$", section, re.MULTILINE)


def test_every_page_is_in_the_navigation_once() -> None:
    pages = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    assert sorted(_nav()) == pages


def test_broken_links_are_errors() -> None:
    # Tags of Python name functions of extensions; what they are does not matter here.
    config = yaml.safe_load(_CONFIG.read_text().replace("!!python/name:", ""))
    assert config["strict"] is True
    assert config["validation"]["links"] == {
        "not_found": "warn", "anchors": "warn", "unrecognized_links": "warn",
    }  # fmt: skip


def test_pictures_of_the_guides_are_there_and_none_is_left_over() -> None:
    shown = {
        (page.parent / link).resolve()
        for page in DOCS.rglob("*.md")
        for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text())
    }
    assert shown == {path.resolve() for path in DOCS.rglob("*.png")}
    assert len(shown) == 3


@pytest.mark.extra
def test_site_is_built_and_a_broken_link_is_not(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install '.[docs]'")
    for name in ("docs", "prefect_ray_worker"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(_CONFIG, tmp_path)
    assert _build(tmp_path).returncode == 0
    page = tmp_path / "docs" / "how-to" / "gpus.md"
    page.write_text(page.read_text() + "\n[Nowhere](no-such-page.md)\n")
    broken = _build(tmp_path)
    assert broken.returncode != 0
    assert "no-such-page.md" in broken.stderr


def _build(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_diagrams_are_drawn_without_another_host() -> None:
    """The theme's own support for Mermaid loads it from a host that an offline reader lacks."""
    folder = DOCS / "javascripts"
    (library,) = re.findall(r'new URL\("([^"]+)"', (folder / "diagrams.js").read_text())
    assert (folder / library).is_file()
    assert "class: diagram" in _CONFIG.read_text()
    assert any("```mermaid" in page.read_text() for page in DOCS.rglob("*.md"))


def test_console_block_has_the_class_by_which_the_copy_button_finds_it() -> None:
    """Without it the script does nothing, and the button copied `$` and output."""
    markdown = pytest.importorskip("markdown", reason="pip install '.[docs]'")
    pytest.importorskip("pymdownx", reason="pip install '.[docs]'")
    config = yaml.safe_load(_CONFIG.read_text().replace("!!python/name:", ""))
    extensions: dict[str, dict[str, object]] = {}
    for extension in config["markdown_extensions"]:
        extensions |= extension if isinstance(extension, dict) else {extension: {}}
    extensions["pymdownx.superfences"] = {}
    page = markdown.markdown(
        "```console\n$ ls\n```\n", extensions=list(extensions), extension_configs=extensions
    )
    (found,) = re.findall(r'closest\("\.([\w-]+)"\)', (DOCS / "javascripts/copy.js").read_text())
    assert found in page


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_copy_button_copies_commands_and_no_output() -> None:
    script = (DOCS / "javascripts" / "copy.js").read_text()
    block = "$ a \\\n    -b   # why\nout\n$ cat <<'EOF'\n$ x\nEOF\n  more out\n"
    shown = subprocess.run(
        ["node", "-e", f"document = {{addEventListener() {{}}}};{script};"
         f"process.stdout.write(commandsOf({block!r}))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout == "a \\\n    -b\ncat <<'EOF'\n$ x\nEOF"
