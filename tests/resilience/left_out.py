"""Which pairs of a fault and a stage are not played, and why."""

LEFT_OUT = (
    "The driver's guard, supervisor, engine and Ray's JobSupervisor at *submitting* and *pending*: "
    "they do not exist yet.",
    "Anything at *submitting* except the worker, the head, the network and Prefect: nothing else "
    "takes part in a submission.",
    "The worker at *finishing* with SIGTERM and SIGSTOP: as with SIGKILL, Prefect already has the "
    "result, and only the rest of the log must be taken over.",
    "The network, the dashboard and the head at *finishing*: the driver does not need them, "
    "and Prefect has the result. The JobSupervisor, which dies with a head, is in the table.",
    "The head's agent alone: Ray 2.60 ends the raylet with it, which is the loss of the node. The "
    "jobs that a head's new agent does not see are in the table as the head with Redis.",
    "The driver's node at *submitting* and *pending*: no process of the run is on a node yet.",
    "The loss of the head at *pending*: for the worker it is the same as at *running*.",
    "KubeRay at *submitting*, *pending*, *paused* and *finishing*: while a job runs, the run's own "
    "cluster differs from any other only in the meaning of its loss. "
    "`tests/integration/kuberay/test_kuberay_troubles.py` tests crash loops, quotas, images and "
    "rights.",
    "The parts of a Prefect server: it is one process here.",
    "A 502, a login page, an expired token, a vanished record, a deleted run or deployment, a "
    "rejected proposal: real Ray and Prefect do not produce these on demand. "
    "`tests/integration/test_faults_*.py` and `test_recovery.py` test them with a fake head.",
)
