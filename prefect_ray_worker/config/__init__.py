"""Turn job variables and a flow run into one frozen submission request, or refuse them.

Enters: a pool's template, a flow run. Leaves: a `JobSubmitRequest`. Never sends anything; a
refusal never shows a secret.
"""
