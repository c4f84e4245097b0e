"""The measured failure model in the docs is what was measured."""

from tests.resilience.pairs import PAIRS
from tests.resilience.table import PAGE, kept, page


def test_page_in_the_docs_is_what_was_measured() -> None:
    assert page() == PAGE.read_text(), "write it anew with `python -m tests.resilience <text>`"


def test_no_result_is_of_a_pair_that_is_not_there() -> None:
    names = [pair.name for pair in PAIRS]
    assert len(set(names)) == len(names)
    assert set(kept()) <= set(names)
