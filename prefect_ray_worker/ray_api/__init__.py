"""Ray's Jobs REST API: one method per endpoint, and what its answers mean.

All sockets to Ray live in this room. It holds no policy: what to do about an
error is decided by those who call.
"""
