"""`python -m` entry of the bundle step `execute`."""

from tests.integration.bundles.folder import execute

if __name__ == "__main__":
    execute()
