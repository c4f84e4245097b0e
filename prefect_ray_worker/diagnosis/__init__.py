"""Why a run ended without a result: from what is known to a category, a cause and what to do.

Pure, and the standard library only: the worker uses it, and the driver's first process, which
imports nothing else. One table per kind of evidence: `rules` for texts, `deaths` for exit codes,
`waiting` for jobs that do not start; `job` puts them together.
"""
