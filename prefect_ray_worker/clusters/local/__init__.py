"""The embedded Ray: one for this machine, shared, owned and stopped by the workers that use it.

Import `LocalCluster` from `cluster`. The other modules are its parts: `state` (the files in the
state directory), `launch` (how Ray is started) and `processes` (who runs, and how it ends).
"""
