"""A flow that fans out over the Ray cluster in which it runs."""

from collections import Counter
from pathlib import Path

import digits
from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.futures import as_completed

from prefect_ray_worker import RayTaskRunner

FILE = Path(__file__).parent / "digits.csv.gz"
IMAGES = 1797

Guesses = list[tuple[int, int]]


@task(task_run_name="guess-{start}-to-{stop}")
def guess(start: int, stop: int, neighbours: int) -> Guesses:
    """Guess some of the digits, each from all the others; the file is on every node."""
    images, labels = digits.load(FILE)
    return digits.guess(images, labels, range(start, min(stop, len(images))), neighbours)


@task
def report(parts: list[Guesses]) -> float:
    """Create an artifact for the Prefect UI, and return the share of correct guesses."""
    guesses = [pair for part in parts for pair in part]
    wrong = Counter(pair for pair in guesses if pair[0] != pair[1])
    share = 1 - wrong.total() / len(guesses)
    rows = "\n".join(f"| {was} | {said} | {n} |" for (was, said), n in wrong.most_common(5))
    create_markdown_artifact(
        f"**{share:.1%}** of {len(guesses)} digits were read correctly.\n\n"
        f"| digit | read as | times |\n|---|---|---|\n{rows}",
        key="handwriting",
    )
    (was, said), times = wrong.most_common(1)[0]
    get_run_logger().info(
        "%.1f %% read correctly; the most frequent mistake: %d read as %d, %d times",
        100 * share,
        was,
        said,
        times,
    )
    return share


# Without an address, the task runner joins the cluster that runs this flow's Ray Job.
@flow(task_runner=RayTaskRunner())
def read_handwriting(neighbours: int = 3, chunks: int = 12) -> float:
    """Guess 1,797 handwritten digits, each from all the others, and count the hits.

    Args:
        neighbours: How many similar images vote on a digit.
        chunks: How many tasks share the work.

    Returns:
        The share of correct guesses.
    """
    logger = get_run_logger()
    logger.info("Reading %d handwritten digits in %d tasks on the Ray cluster", IMAGES, chunks)
    progress = create_progress_artifact(0.0, key="digits-read", description="Digits read")
    size = -(-IMAGES // chunks)
    parts = [guess.submit(start, start + size, neighbours) for start in range(0, IMAGES, size)]
    for number, _ in enumerate(as_completed(parts), start=1):
        update_progress_artifact(progress, 100 * number / len(parts))
        logger.info("%2d of %d tasks are done", number, len(parts))
    return report.submit(parts).result()
