"""Ray's Jobs REST API: one method per endpoint, and what each answer means.

Enters: a `Connection`, a request. Leaves: a typed answer, or an error that says whether asking
again is safe. All sockets to Ray are here. Holds no policy: the caller decides what to do.
"""
