"""Where a run's cluster comes from, and the open clients and pollers of those in use.

Enters: a configuration. Leaves: a connection, and an open cluster behind it. Never treats silence
as death.
"""
