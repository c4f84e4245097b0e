"""What a call tells its user, and where the user finds the run."""

import sys
from uuid import UUID

from prefect.utilities.urls import url_for


def page_of(flow_run_id: UUID) -> str:
    """Return the page of a run in Prefect's UI, or its id where there is no UI."""
    return url_for("flow-run", obj_id=flow_run_id) or str(flow_run_id)


def say(text: str) -> None:
    """Print a line for the user."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
