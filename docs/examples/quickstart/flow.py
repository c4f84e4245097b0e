"""A flow that fans out over the Ray cluster in which it runs."""

from collections import Counter
from pathlib import Path

import digits
import ray
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

HERE = Path(__file__).parent


@flow
def read_handwriting(neighbours: int = 3, chunks: int = 8) -> float:
    """Guess 1,797 handwritten digits, each from all the others, and count the hits.

    Args:
        neighbours: How many similar images vote on a digit.
        chunks: Into how many Ray tasks the work is cut.

    Returns:
        The share of right guesses.
    """
    logger = get_run_logger()
    images, labels = digits.load(HERE / "digits.csv.gz")
    # Inside a Ray Job this joins the cluster that runs the job: no address is needed.
    ray.init(log_to_driver=False)
    logger.info(
        "Guessing %d digits on %d CPUs of the Ray cluster",
        len(images),
        ray.cluster_resources().get("CPU", 0),
    )
    guess = ray.remote(digits.guess)
    shared = ray.put(images), ray.put(labels)
    size = -(-len(images) // chunks)
    pending = [
        guess.remote(*shared, range(start, min(start + size, len(images))), neighbours)
        for start in range(0, len(images), size)
    ]
    guesses: list[tuple[int, int]] = []
    while pending:
        done, pending = ray.wait(pending)
        guesses += ray.get(done[0])
        logger.info("%4d of %d digits guessed", len(guesses), len(images))
    return report(guesses)


def report(guesses: list[tuple[int, int]]) -> float:
    """Put the result where the Prefect UI shows it, and return the share of right guesses."""
    wrong = Counter(pair for pair in guesses if pair[0] != pair[1])
    share = 1 - wrong.total() / len(guesses)
    rows = "\n".join(f"| {was} | {said} | {n} |" for (was, said), n in wrong.most_common(5))
    create_markdown_artifact(
        f"**{share:.1%}** of {len(guesses)} digits were read right.\n\n"
        f"| digit | read as | times |\n|---|---|---|\n{rows}",
        key="handwriting",
    )
    (was, said), times = wrong.most_common(1)[0]
    get_run_logger().info(
        "%.1f %% read right; the most frequent mistake: a %d taken for a %d, %d times",
        100 * share,
        was,
        said,
        times,
    )
    return share
