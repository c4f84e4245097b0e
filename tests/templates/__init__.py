"""The deployment templates: each file is checked, and what can run here runs."""
