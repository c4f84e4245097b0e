"""From job variables and a flow run to one frozen submission request, or a refusal.

Enters: a pool's template, a flow run. Leaves: a `JobSubmitRequest`. Never sends anything, and
shows no secret in a refusal.
"""
