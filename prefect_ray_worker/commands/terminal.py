"""What the commands print to: colours and a spinner on a terminal, plain text elsewhere."""

import io
import sys
from functools import cache

from rich.console import Console
from rich.text import Text

from prefect_ray_worker.shared.plain_text import plain

BAD_CALL = 2
"""Exit code of a call that cannot work, whatever the state of the cluster."""

# Piped output is for programs: a line of a table must not be broken.
_PIPED_WIDTH = 4000


@cache
def console() -> Console:
    """Return the standard output. Like every console of rich, it heeds NO_COLOR."""
    return _console(stderr=False)


@cache
def errors() -> Console:
    """Return the standard error."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr,
        width=None if is_terminal else _PIPED_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


def print_any_character() -> None:
    """Write a character that the encoding of the standard output lacks as its escape.

    Python does so for the standard error only; for the standard output it raises an error.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_line(text: str) -> None:
    """Print a line in one piece, wherever the terminal ends."""
    console().print(Text(plain(text)), soft_wrap=True)


def print_text(to: Console, text: Text) -> None:
    """Print sentences: wrapped at words on a terminal, as one line elsewhere."""
    to.print(text, soft_wrap=not to.is_terminal)


def length_of(seconds: float) -> str:
    """Return a length of time in its two largest units: `3 m 5 s`, `2 d 4 h`."""
    rest = max(0, int(seconds))
    parts: list[str] = []
    for name, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or (name == "s" and not parts):
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])
