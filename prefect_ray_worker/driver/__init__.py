"""What a Ray Job runs inside the cluster: prepares the flow, runs it and reports to Prefect.

Enters: a flow run and an attempt. Leaves: the run's state, an exit code and marked lines.
`supervise` is the first process, `engine` the second; `report` starts after an engine that died
silently. The driver ships with each job, and never imports the worker or Ray.
"""
