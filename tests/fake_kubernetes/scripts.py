"""What goes wrong with a cluster: one `Script` for each, looked up by its name."""

import re
from dataclasses import dataclass

NO_NODE = "0/5 nodes are available: 3 Insufficient cpu, 2 node(s) had untolerated taint(s)."


@dataclass
class Script:
    """The troubles of one cluster. Change it while the cluster lives: they end, or begin.

    For a quota on pods, services or secrets use `FakeKubernetes.limit`.

    Attributes:
        ignored: The operator never looks at it: absent, or not watching the namespace.
        refused: The operator refuses its spec, with these words in an event.
        unschedulable: No node takes its pods; the scheduler's words, such as `NO_NODE`.
        image: Its image cannot be pulled, with these words.
        spares_head: Whether these two concern its workers only.
        crashes: How many times the head's container ends before it stays; `math.inf` for ever.
        last_words: What the head logs before it crashes.
        slow: Seconds from the start of a container to ready.
        held: A finalizer holds its deletion until this is False.
        out_of_memory: Crashes are OOM kills.
    """

    ignored: bool = False
    refused: str | None = None
    unschedulable: str | None = None
    image: str | None = None
    spares_head: bool = False
    crashes: float = 0
    last_words: str = (
        "Traceback (most recent call last):\nModuleNotFoundError: No module named 'ray'\n"
    )
    slow: float = 0.0
    held: bool = False
    out_of_memory: bool = False


class Scripts(dict[str, Script]):
    """Scripts by the name of a cluster, or by a pattern of names; `default` for all others."""

    def __init__(self) -> None:
        super().__init__()
        self.default = Script()

    def of(self, cluster: str) -> Script:
        if cluster in self:
            return self[cluster]
        found = (script for name, script in self.items() if re.fullmatch(name, cluster))
        return next(found, self.default)
