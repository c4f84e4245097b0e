"""Examines a cluster as a flow run would use it: `prefect-ray-worker doctor`.

In: an address or a work pool. Out: one `Check` after the other, given by `examine`.
`outside` looks from this machine; `probe_job` runs `probe` as a Ray Job; `inside` grades what it
found. `probe` is sent as source code, so it must not import anything of this package.
"""
