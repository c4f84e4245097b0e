"""The driver's first process: starts the engine, watches it, and reports how it ended.

Standard library only, so that it starts at once and costs little.
"""
