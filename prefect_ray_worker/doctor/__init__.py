"""Examines a cluster before a flow has to: it does once what a run does, and says what fails.

    target -> cluster -> shipping -> probing -> inside, clocks, logs -> records
              (from here)            |          (what the probe has found)
                                     probe.py runs in the cluster, as a Ray Job

Each step needs what the step before has shown; `examination` walks them in this order and stops
where nothing further can be said. A check is one line; `report` writes them down.
"""
