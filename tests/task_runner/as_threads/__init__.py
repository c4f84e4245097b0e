"""Flows that behave under `RayTaskRunner` as they do under Prefect's `ThreadPoolTaskRunner`."""
