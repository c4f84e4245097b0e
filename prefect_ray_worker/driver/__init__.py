"""What runs as the Ray Job's entrypoint, inside the cluster.

`supervisor` is the first process: the standard library only, so that it starts at once and
costs little. `engine` is the second: it imports Prefect, prepares the flow and runs it. `report`
is a third, started only when an engine died without a word.

This wing is shipped with each job (see `shipping`), and knows nothing of the worker's rooms.
"""
