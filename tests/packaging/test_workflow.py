"""The workflows on GitHub: CI runs what `.ci/run` runs, and a release needs no stored password."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS: dict[str, dict[Any, Any]] = {f.stem: yaml.safe_load(f.read_text()) for f in FILES}
CI, RELEASE = WORKFLOWS["ci"], WORKFLOWS["release"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EACH = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def triggers(workflow: dict[Any, Any]) -> dict[str, Any]:
    return workflow[True]  # YAML 1.1 reads `on` so


def steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


def used(job: dict[str, Any]) -> list[str]:
    return [step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step]


def test_workflow_runs_the_same_command() -> None:
    commands = [step["run"] for step in CI["jobs"]["ci"]["steps"] if "run" in step]
    assert commands == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").exists()


def test_workflow_runs_on_every_python_that_is_promised() -> None:
    minors = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert CI["jobs"]["ci"]["strategy"]["matrix"]["python"] == minors


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_may_read_and_nothing_else_but_where_a_job_asks(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    granted = {
        job: {right for right, level in body["permissions"].items() if level == "write"}
        for job, body in WORKFLOWS[name]["jobs"].items()
        if "permissions" in body
    }
    assert (
        granted
        == {
            "ci": {},
            "nightly": {},
            "docs": {"docs": {"contents"}},
            "release": {
                "build": {"id-token", "attestations"},
                "pypi": {"id-token"},
                "image": {"packages", "id-token", "attestations"},
                "release": {"contents"},
            },
        }[name]
    )


def test_commands_of_ci_are_targets_of_make() -> None:
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    commands += [
        target
        for workflow in WORKFLOWS.values()
        for step in steps(workflow)
        for target in re.findall(r"\bmake (\S+)", step.get("run", ""))
    ]
    assert {"check", "test", "test-extra", "docs", "docs-version"} <= set(commands)
    assert set(commands) <= set(targets)


@EACH
def test_every_action_is_pinned_to_a_commit_and_says_its_version(path: Path) -> None:
    for line in re.findall(r"uses: (.+)$", path.read_text(), re.MULTILINE):
        assert line.startswith("./") or re.fullmatch(r"\S+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)


@EACH
def test_no_script_takes_text_of_others_into_its_code(path: Path) -> None:
    """A branch or a tag can have a name that is a command: it comes by a variable."""
    for step in steps(WORKFLOWS[path.stem]):
        assert "${{" not in step.get("run", "")


@EACH
def test_every_job_has_a_limit_and_what_it_needs_exists(path: Path) -> None:
    jobs = WORKFLOWS[path.stem]["jobs"]
    for job in jobs.values():
        assert "timeout-minutes" in job or "uses" in job
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= set(jobs)


def test_tag_is_published_after_ci_and_the_check_of_the_changelog() -> None:
    jobs = RELEASE["jobs"]
    assert triggers(RELEASE) == {"push": {"tags": ["v*"]}}
    assert jobs["ci"] == {"uses": "./.github/workflows/ci.yml"}
    assert "workflow_call" in triggers(CI)
    # The called workflow's group is `release-…`: one of the same name would cancel its caller.
    assert not RELEASE["concurrency"]["group"].startswith(RELEASE["name"])
    assert jobs["pypi"]["needs"] == ["ci", "build"]
    assert jobs["image"]["needs"] == "pypi"
    scripts = [step.get("run", "") for step in jobs["build"]["steps"]]
    checks = [i for i, run in enumerate(scripts) if ".ci/release.py" in run]
    builds = [i for i, run in enumerate(scripts) if "-m build" in run]
    assert checks < builds


def test_release_is_trusted_attested_and_made_of_one_build() -> None:
    jobs = RELEASE["jobs"]
    pypi, image = jobs["pypi"], jobs["image"]
    assert pypi["environment"] == "pypi"
    assert pypi["steps"][-1]["with"] == {"attestations": True}, "and no password"
    for job in (jobs["build"], image):
        assert "actions/attest-build-provenance" in used(job)
    for job in (pypi, image, jobs["release"]):
        assert "actions/download-artifact" in used(job)
    (built,) = [step["with"] for step in image["steps"] if step.get("id") == "image"]
    assert built["build-contexts"] == "wheel=dist"
    assert built["file"] == "deployment-templates/images/worker.Dockerfile"
    assert (built["provenance"], built["sbom"]) == ("mode=max", True)
    secrets = {name for path in FILES for name in re.findall(r"secrets\.(\w+)", path.read_text())}
    assert secrets == {"GITHUB_TOKEN"}


def test_versions_of_the_docs_are_chosen_in_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text().replace("!!python/name:", "")
    assert yaml.safe_load(text)["extra"]["version"] == {"provider": "mike"}
    assert any(d.startswith("mike") for d in PROJECT["optional-dependencies"]["docs"])
    (job,) = WORKFLOWS["docs"]["jobs"].values()
    assert job["steps"][0]["with"] == {"fetch-depth": 0}, "mike adds to the branch gh-pages"


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=str)
def test_issue_forms_are_complete(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert form == {"blank_issues_enabled": False}
        return
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(set(ids)) == len(ids) >= 1
    for field in form["body"]:
        assert field["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert field["attributes"].get("label") or field["attributes"].get("value")
