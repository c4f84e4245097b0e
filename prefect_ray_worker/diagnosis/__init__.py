"""Why a run ended without a result: from evidence to a category, a cause and what to do.

Enters: an error type, an exit code, a text, what the cluster has. Leaves: a `Diagnosis`. Pure;
imports nothing but `shared/`. `rules` read texts, `pending` explains jobs that do not start,
`job` puts them together. Deaths by exit code are in `shared/`, because the driver names them too.
"""
