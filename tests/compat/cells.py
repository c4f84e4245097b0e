"""`Cell`: a combination of versions to try, and what came of it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

MEASURED = Path(__file__).with_name("measured.json")

OLDEST_RAY, NEWEST_RAY = "2.10.0", "2.60.0"
# 3.9 did not install where this was last run.
OLDEST_PREFECT, NEWEST_PREFECT = "3.8.0", "3.8.8"


@dataclass(frozen=True)
class Cell:
    """A combination.

    Attributes:
        name: For the command line.
        python: Its minor version.
        ray: Its version.
        prefect: Its version.
    """

    name: str
    python: str
    ray: str
    prefect: str


CELLS = (
    Cell("oldest", "3.11", OLDEST_RAY, OLDEST_PREFECT),
    Cell("oldest-ray", "3.11", OLDEST_RAY, NEWEST_PREFECT),
    Cell("oldest-prefect", "3.11", NEWEST_RAY, OLDEST_PREFECT),
    Cell("newest", "3.11", NEWEST_RAY, NEWEST_PREFECT),
    Cell("python-3.12", "3.12", NEWEST_RAY, NEWEST_PREFECT),
    Cell("python-3.13", "3.13", NEWEST_RAY, NEWEST_PREFECT),
)


@dataclass(frozen=True)
class Result:
    """What came of a combination.

    Attributes:
        passed: How many tests did.
        failed: Names of those that did not.
        trouble: Why there were no tests at all, in a line; empty if there were.
    """

    passed: int = 0
    failed: tuple[str, ...] = ()
    trouble: str = ""

    @property
    def verdict(self) -> str:
        """In a few words, for the table."""
        if self.trouble:
            return f"not run: {self.trouble}"
        if self.failed:
            return f"{self.passed} pass, {len(self.failed)} fail: {', '.join(self.failed)}"
        return f"all {self.passed} pass"


def measured() -> dict[str, Result]:
    """Return the results so far, by the names of their cells."""
    if not MEASURED.exists():
        return {}
    return {
        name: Result(found["passed"], tuple(found["failed"]), found["trouble"])
        for name, found in json.loads(MEASURED.read_text()).items()
    }


def record(cell: Cell, result: Result) -> None:
    """Keep the result of a cell beside those of the others."""
    known = {**measured(), cell.name: result}
    ordered = {c.name: asdict(known[c.name]) for c in CELLS if c.name in known}
    MEASURED.write_text(json.dumps(ordered, indent=2) + "\n")
