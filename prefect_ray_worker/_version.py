"""The package's version as installed, and the oldest versions that it works with."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("prefect-ray-worker")
except PackageNotFoundError:  # run from a source tree or from a zip
    __version__ = "0.0.0"

# As pyproject.toml declares them; a house test compares the two.
OLDEST_PYTHON = (3, 11)
OLDEST_PREFECT = (3, 8)
OLDEST_RAY = (2, 10)  # the first with version 4 of the Jobs REST API, `DELETE` included
