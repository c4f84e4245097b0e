"""Installs sources of clusters for a test, as `pip` would: modules with entry points."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from prefect_ray_worker.clusters.plugin import GROUP


def install(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    sources: Mapping[str, str],
    modules: Mapping[str, str],
    *,
    package: str = "acme-clusters",
) -> None:
    """Install a distribution of sources.

    Args:
        folder: A folder of its own, which goes on the path.
        monkeypatch: Takes it off again.
        sources: Name to entry point, such as `module:Class`.
        modules: Name to text.
        package: The distribution's name; its version is 1.2.3.
    """
    info = folder / f"{package.replace('-', '_')}-1.2.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2.3\n")
    lines = [f"{name} = {target}" for name, target in sources.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
