"""`Diagnosis`: why a run has no result. For any Python: a driver says so of an old one, too."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from prefect_ray_worker.shared.category import Category

_ENDS_OF_SENTENCES = (".", "!", "?", "…")


@dataclass(frozen=True)
class Diagnosis:
    """Why a run has no result.

    Attributes:
        category: The kind of failure.
        cause: What happened, in one sentence.
        advice: What to do, in one sentence.
        lines: The last useful lines of the job's log, or of Ray's message.
    """

    category: Category
    cause: str
    advice: str
    lines: "tuple[str, ...]" = ()

    def __str__(self) -> str:
        """Return the text for a state: `Category: cause advice`, then the log lines."""
        text = f"{self.category}: {self.cause} {self.advice}".strip()
        return "\n".join([text, "", "The last lines:", *self.lines]) if self.lines else text


def diagnosed(
    category: Category,
    cause: str = "",
    *,
    advice: "str | None" = None,
    lines: "Sequence[str]" = (),
) -> Diagnosis:
    """Return a diagnosis; what is left out is what the category says in general.

    Args:
        category: The kind of failure.
        cause: What happened, in one sentence. It gets a full stop if it has none, because the words
            of others often end it.
        advice: What to do, in one sentence.
        lines: The last useful lines of the job's log.
    """
    cause = (cause or category.meaning).rstrip()
    if not cause.endswith(_ENDS_OF_SENTENCES):
        cause = f"{cause}."
    # One line that is in the sentence already needs no second place.
    shown = () if len(lines) == 1 and lines[0].strip(" .") in cause else tuple(lines)
    return Diagnosis(category, cause, category.advice if advice is None else advice, shown)


def newer_image(oldest_python: "tuple[int, int]", ray_version: str) -> str:
    """Return which image to take for nodes whose Python is too old.

    Args:
        oldest_python: What the driver needs.
        ray_version: The Ray of those nodes; empty if it is not known.
    """
    major, minor = oldest_python
    # A nightly or a build of one's own has no image of that name.
    version = ray_version if re.fullmatch(r"\d+\.\d+\.\d+", ray_version) else "VERSION"
    return (
        f"Use Python {major}.{minor} or later on all nodes of the cluster, for example the image "
        f"rayproject/ray:{version}-py{major}{minor} with Prefect in it (the image of the "
        "RayCluster, or kuberay.image)."
    )
