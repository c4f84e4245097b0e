"""A job's output to its flow run, every line once and in order.

`bridge` drives: `read` from the cluster, into `lines`, which `classify` shapes or leaves out, and
`send` to Prefect; `position` is where to go on after a restart, `forward` how long. Never drops or
repeats a line.
"""
