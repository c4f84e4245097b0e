"""What both sides know: the worker, and what runs in the cluster.

Enters: nothing. Leaves: ids, exit codes, marks. Standard library only; imports nothing of ours.
"""
