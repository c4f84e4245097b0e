"""The log bridge: what a job prints becomes logs of its flow run, each line exactly once.

    job's log -> reader -> lines -> shaping -> numbering -> sender -> Prefect

`bridge` runs the chain for one run; `reader` is shared by all runs of a cluster; `position` finds
the place again after a restart. Nothing is kept on disk: the timestamps of the logs that are in
Prefect already say how far it came (`numbering`).
"""
