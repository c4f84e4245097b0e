"""Reads handwritten digits by their nearest neighbours. Plain Python, knows nothing of Ray."""

import csv
import gzip
import heapq
import math
from collections import Counter
from pathlib import Path

Image = tuple[float, ...]


def load(path: Path) -> tuple[list[Image], list[int]]:
    """Read images of 8 x 8 grey values and the digit that each one shows."""
    images: list[Image] = []
    labels: list[int] = []
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.reader(file):
            *pixels, label = (float(cell) for cell in row)
            images.append(tuple(pixels))
            labels.append(int(label))
    return images, labels


def guess(
    images: list[Image], labels: list[int], rows: range, neighbours: int
) -> list[tuple[int, int]]:
    """Guess each image of `rows` from all the others.

    Returns:
        The digit and the guess, for each row.
    """
    guesses: list[tuple[int, int]] = []
    for row in rows:
        image = images[row]
        distances = (
            (math.dist(image, other), label)
            for index, (other, label) in enumerate(zip(images, labels, strict=True))
            if index != row
        )
        nearest = heapq.nsmallest(neighbours, distances)
        guesses.append((labels[row], Counter(label for _, label in nearest).most_common(1)[0][0]))
    return guesses
