"""One attempt at one flow run: its job is submitted, followed to its end, and the run settled.

`Submitter` makes the job, `Follower` watches it, `Closer` turns a verdict into the run's end,
and `Reporter` tells the user what changed. An attempt that an earlier worker has submitted is
followed in the same way.
"""
