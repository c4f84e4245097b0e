"""Code and answers of flows without a deployment: what a caller packs and a driver unpacks.

Both travel in the inputs of the flow run, so a caller needs the Prefect API and nothing else.
The driver uses `header`, `carriers`, `content` and `answers`; `packing`, `files` and `modules` are
the caller's.
"""
