"""What both sides know: the worker, and what runs in the cluster.

Enters: nothing. Leaves: ids, exit codes, categories and their diagnoses, marks of lines, the model
of a node, rules that both sides follow. Standard library only; imports nothing of ours.
"""
