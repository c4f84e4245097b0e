"""The workflow on GitHub runs what `.ci/run` runs, on every Python that is promised."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_workflow_runs_the_same_command() -> None:
    steps = WORKFLOW["jobs"]["ci"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").exists()


def test_workflow_runs_on_every_python_that_is_promised() -> None:
    minors = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert WORKFLOW["jobs"]["ci"]["strategy"]["matrix"]["python"] == minors


def test_workflow_may_read_and_nothing_else() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_commands_of_ci_are_targets_of_make() -> None:
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    used = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert used
    assert set(used) <= set(targets)


def test_workflow_says_how_to_pin_an_action_or_pins_it() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    pinned = all(re.search(r"@[0-9a-f]{40}\b", use) for use in re.findall(r"uses: (\S+)", text))
    assert pinned or "To pin an action" in text
