"""Watching jobs: one look per cluster serves all runs, and silence is never read as death."""
