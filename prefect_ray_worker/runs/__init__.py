"""One run, from its submission to its settled end.

Enters: a prepared configuration and a cluster. Leaves: a settled flow run. Decides only in `judge`
and `recovery/ownership`; never treats silence as death.
"""
