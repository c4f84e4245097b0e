"""What a driver checks before it unpickles anything."""

import json

import pytest

from prefect_ray_worker.bundles.header import BundleHeader
from prefect_ray_worker.errors import BundleDamaged, BundlePythonMismatch

HEADER = BundleHeader.of(b"content", parts=1)


def test_header_survives_its_way() -> None:
    assert BundleHeader.parse(HEADER.to_json()) == HEADER


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"format": 1}', '"text"'])
def test_what_is_no_header_is_damaged(text: str) -> None:
    with pytest.raises(BundleDamaged):
        BundleHeader.parse(text)


def test_header_of_another_release_says_so() -> None:
    later = json.dumps({**json.loads(HEADER.to_json()), "format": 2})
    with pytest.raises(BundleDamaged, match="different releases"):
        BundleHeader.parse(later)


def test_bundle_of_another_python_is_refused() -> None:
    """Its functions would end this process with a segmentation fault."""
    other = json.dumps({**json.loads(HEADER.to_json()), "python": "3.9"})
    with pytest.raises(BundlePythonMismatch, match=r"from Python 3\.9, and the job runs"):
        BundleHeader.parse(other).check_python()


def test_other_content_is_damaged() -> None:
    HEADER.check_content(b"content")
    with pytest.raises(BundleDamaged, match="another SHA-256"):
        HEADER.check_content(b"Content")
