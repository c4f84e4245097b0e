"""One run: `submit`, `watch` and `judge`, looped by `follow`; then `settle`, `stop` if need be.

`narrate` and `explain` tell the user, `wake` makes the worker look for runs, `attended` asks which
are cancelled; `recovery/` decides who follows a run. Enters: a configuration and a cluster. Leaves:
a settled flow run. The policy is in `judge` and `recovery/ownership`; silence is never death.
"""
