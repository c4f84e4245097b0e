"""What we ask and tell Prefect: runs, states, logs and events.

Enters: ids and facts. Leaves: requests to the Prefect API. Never changes a run that somebody else
has settled. `compat` has every private name of Prefect.
"""
