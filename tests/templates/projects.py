"""A project of a user: a repository with a prefect.yaml, which `prefect deploy` reads."""

import os
import subprocess
import sys
from pathlib import Path

from prefect.settings import PREFECT_API_URL

from tests.templates.folders import ROOT


def git(*arguments: str, folder: Path) -> None:
    """Run git with an author."""
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def make_repository(folder: Path) -> None:
    """Commit all of a folder to a repository of its own."""
    git("init", "--initial-branch=main", folder=folder)
    git("add", ".", folder=folder)
    git("commit", "--message=all", folder=folder)


def deploy_all(folder: Path, *packages: Path) -> None:
    """Run `prefect deploy --all`, where some more packages can be imported."""
    subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=folder,
        env={
            **os.environ,
            "PREFECT_API_URL": PREFECT_API_URL.value() or "",
            "PREFECT_HOME": str(folder.parent / "home"),
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *packages))),
        },
        check=True,
        capture_output=True,
        text=True,
    )
