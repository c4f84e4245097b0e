"""What pyproject.toml says of this package: versions, and where its documentation is."""

from importlib.metadata import PackageNotFoundError, metadata, version

try:
    __version__ = version("prefect-ray-worker")
except PackageNotFoundError:  # run from a source tree or from a zip
    __version__ = "0.0.0"

# As pyproject.toml declares them; a house test compares the two.
OLDEST_PYTHON = (3, 11)
OLDEST_PREFECT = (3, 8)
OLDEST_RAY = (2, 10)  # the first with version 4 of the Jobs REST API, `DELETE` included


def documentation_url() -> str:
    """Return the URL `Documentation` of pyproject.toml, or an empty text if it names none."""
    try:
        urls = metadata("prefect-ray-worker").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    named = dict(url.split(", ", 1) for url in urls)
    return named.get("Documentation", "")
