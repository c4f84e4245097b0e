"""The commands of `prefect-ray-worker`: doctor, status, logs and sweep.

Each command is a function in a file of its own, `app` parses the command line, and `terminal` is
what they print to. The modules import Prefect only when a command runs, so that `--help` is quick.
"""
