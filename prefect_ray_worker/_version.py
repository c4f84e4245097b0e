"""What pyproject.toml says of this package: versions, and where its documentation is.

`importlib.metadata` is imported on use: every job's first process reads `OLDEST_PYTHON`, and that
import would take it a third of its start.
"""

__version__: str

# As pyproject.toml declares them; a house test compares the two.
OLDEST_PYTHON = (3, 11)
OLDEST_PREFECT = (3, 8)
OLDEST_RAY = (2, 10)  # the first with version 4 of the Jobs REST API, `DELETE` included


def documentation_url() -> str:
    """Return the URL `Documentation` of pyproject.toml, or an empty text if it names none."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        urls = metadata("prefect-ray-worker").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    named = dict(url.split(", ", 1) for url in urls)
    return named.get("Documentation", "")


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("prefect-ray-worker")
    except PackageNotFoundError:  # run from a source tree or from a zip
        return "0.0.0"
