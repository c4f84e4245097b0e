"""Prefect's UI in a real browser: what users see of a `ray` work pool."""
