"""Links from a run to its job, as artifacts of Prefect."""

from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)

LINK_KEY = "ray-job"
"""Key of the artifacts that link a run to its job: lower case, digits and dashes, says Prefect."""


@dataclass(frozen=True)
class Link:
    """A link.

    Attributes:
        url: Where it leads.
        text: What is to be read there.
        description: What it is, in Markdown.
    """

    url: str
    text: str
    description: str


async def put_link(
    client: PrefectClient, flow_run_id: UUID, link: Link, *, may_be_there: bool
) -> None:
    """Put a link onto a run, as an artifact, unless the run has it already.

    All runs share the key: Prefect shows the artifacts of a key as versions of one thing, and a
    key of its own for each run would fill the page of artifacts.

    Args:
        client: An open client.
        flow_run_id: The run.
        link: The link.
        may_be_there: Whether to look for it first.
    """
    data = f"[{link.text}]({link.url})"
    if may_be_there and data in await _links_of(client, flow_run_id):
        return
    await client.create_artifact(
        ArtifactCreate(
            key=LINK_KEY,
            # What Prefect's own link artifacts are (`LinkArtifact`, 3.8.8).
            type="markdown",
            description=link.description,
            data=data,
            flow_run_id=flow_run_id,
        )
    )


async def _links_of(client: PrefectClient, flow_run_id: UUID) -> list[object]:
    present = await client.read_artifacts(
        artifact_filter=ArtifactFilter(
            key=ArtifactFilterKey(any_=[LINK_KEY]),
            flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]),
        ),
    )
    return [artifact.data for artifact in present]
