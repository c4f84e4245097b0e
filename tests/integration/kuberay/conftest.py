"""What a test of clusters for each run acts on: a real Prefect server and a fake Kubernetes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.kuberay.stage import KubeRayStage, new_kuberay_stage


@pytest.fixture
async def stage(
    prefect_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubeRayStage]:
    """A pool whose runs ask for clusters, each of which is a fake Ray."""
    async with new_kuberay_stage(tmp_path, monkeypatch) as staged:
        yield staged
