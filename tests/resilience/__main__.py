"""Plays the chaos suite and writes its table into the docs.

    python -m tests.resilience [--list] [text ...]

With texts, only the pairs are played whose name contains one of them, and only their rows of the
table change. What is not as it has to be is never written: it is an error.
"""

import signal
import sys
import tempfile
from pathlib import Path

import anyio

from tests.resilience.cluster import has_redis
from tests.resilience.faults import Needs
from tests.resilience.pairs import PAIRS
from tests.resilience.play import Result, play_all
from tests.resilience.table import PAGE, keep, line_of, page


async def main(texts: list[str]) -> int:
    """Play the pairs; return 1 if one of them is not as it has to be."""
    pairs = [p for p in PAIRS if not texts or any(text in p.name for text in texts)]
    if not has_redis() and any(p.fault.needs is Needs.REDIS for p in pairs):
        print("Left out what needs a Redis: install redis-server (apt install redis-server).")
        pairs = [p for p in pairs if p.fault.needs is not Needs.REDIS]
    results: list[Result] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        async for result in play_all(pairs, Path(name)):
            results.append(result)
            keep(result)
            print(f"{len(results)}/{len(pairs)} {line_of(result)}", flush=True)
    PAGE.write_text(page())
    wrong = [result.pair.name for result in results if result.wrong]
    print(
        f"{len(results)} pairs, {len(wrong)} not as they have to be{': ' if wrong else ''}", *wrong
    )
    return int(bool(wrong))


if __name__ == "__main__":
    if "--list" in sys.argv:
        print("\n".join(pair.name for pair in PAIRS))
        sys.exit(0)
    # So that whoever ends it early leaves nothing behind either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(anyio.run(main, sys.argv[1:]))
