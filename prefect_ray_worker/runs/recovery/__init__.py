"""Finds the runs of a pool that no worker follows, and goes on with them.

In: what Prefect says goes on, and what this process follows. Out: adopted runs, settled dead ones,
swept records. `ownership` decides, from the `labels` of runs; `reconcile`, `adopt` and `sweep` act.
"""
