"""A job's output to its flow run, every line once and in order.

Enters: raw bytes of a job's log. Leaves: log records in Prefect. Never drops or repeats a line.
"""
