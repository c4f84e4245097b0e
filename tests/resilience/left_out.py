"""Which pairs of a fault and a stage are not played, and why."""

LEFT_OUT = (
    "The driver's guard, supervisor, engine and Ray's JobSupervisor at *submitting* and *pending*: "
    "they do not exist yet.",
    "Anything at *submitting* beyond the worker, the head, the network and Prefect: nothing else "
    "takes part in it.",
    "The worker at *finishing* with SIGTERM and SIGSTOP: as with SIGKILL, the result is in Prefect "
    "already; what is left to take over is the rest of the log.",
    "The network, the dashboard and the head at *finishing*: the driver does not talk to them, "
    "and Prefect has the result. What dies with a head is its JobSupervisor, which is in the "
    "table.",
    "The head's agent alone: Ray 2.60 ends the raylet with it (they share their fate), which is "
    "the loss of the node. What a head's new agent does not see is in the table as the head "
    "with Redis.",
    "The driver's node at *submitting* and *pending*: no process of the run is on a node yet.",
    "The head for good at *pending*: for the worker the same as at *running*.",
    "KubeRay at *submitting*, *pending*, *paused* and *finishing*: while its job goes on, a "
    "cluster of its own differs from any other only in what its loss means. Crash loops, quotas, "
    "images, rights: `tests/integration/kuberay/test_kuberay_troubles.py`.",
    "The parts of a Prefect server: it is one process here.",
    "Answers 502, a login page, a token that expires, a record that vanishes, a run or a "
    "deployment that is deleted, a proposal that is rejected: real Ray and Prefect cannot be "
    "made to do these at will. They are tested at every stage with a fake head "
    "(`tests/integration/test_faults_*.py`, `test_recovery.py`).",
)
