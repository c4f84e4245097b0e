"""The driver's first processes: they start the engine, watch it, and report how it ended.

Standard library only, so that they start at once and cost little. `supervisor` is the way of every
run. `zygote` stays behind after a run, and forks the supervisors and engines of later ones, which
they get by `borrowed`, `link`, `rendezvous` and `fingerprint`.
"""
