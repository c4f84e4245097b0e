"""The package's version, as installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("prefect-ray-worker")
except PackageNotFoundError:  # run from a source tree or from a zip
    __version__ = "0.0.0"
