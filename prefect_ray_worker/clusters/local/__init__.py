"""The local Ray: one on this machine, which the workers of a Prefect home share and stop.

`source` gives it to runs; `cluster` finds, starts and stops it. Their parts: `state` (the files
that workers share), `launch` (how Ray is started), `processes` (which are ours, and their end).
"""
