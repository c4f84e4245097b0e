"""`python -m` entry of the bundle step `upload`."""

from tests.integration.bundles.folder import upload

if __name__ == "__main__":
    upload()
