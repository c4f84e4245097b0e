"""Text of others is shown, and does nothing."""

import pytest

from prefect_ray_worker.shared.plain_text import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, Größe 😀 שלום", "plain text, Größe 😀 שלום"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("\x1b[32mok\x1b[0m", "ok"),
        ("\x9b32mok", "ok"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9d0;title\x9ctext", "text"),
        ("\x1b[2K\x1b[1Aover", "over"),
        ("line\r\x08\x00\x7f\x85\u2028end", "lineend"),
        ("admin\u202enimda", "admin\\u202enimda"),
        ("\u2066if\u2069", "\\u2066if\\u2069"),
        ("\x1b", ""),
    ],
)
def test_terminals_and_pages_are_not_controlled(text: str, shown: str) -> None:
    assert plain(text) == shown
