"""`Timing`: how long the worker waits for what, apart from the limits that a user sets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Waits and intervals of one worker, in seconds. Tests shorten them.

    Attributes:
        first_pause: Before a failed request is sent again; each further pause is twice as long.
        submit_patience: For a submission that the cluster does not confirm.
        report_grace: For the final state of a driver that exited with code 0 to reach Prefect.
        retry_delay: Before an infrastructure retry. The cluster is busy with the loss of a node.
        nodes_end: Before an infrastructure retry of a job that the cluster lost. Without its
            head, a node's Ray ends itself and its jobs after 60 s (`ray_config_def.h`, 2.60), and
            our supervisor ends what Ray leaves: until then the old attempt may be alive.
        claim_grace: From a claim until its run counts as nobody's, if no worker has labelled it.
        slot_interval: Between two renewals of a deployment's concurrency slot.
        driver_start: After RUNNING, for a driver to load its flow and report Running. The flow
            engine then keeps the concurrency slot itself.
        left_behind: From a state that was set from outside until we stop the job. Our driver needs
            less to see the state and to end its tasks and itself.
        drain: After the end of a run, for the rest of its log, before its own cluster is deleted.
        sweep: Between two sweeps of what is left of runs and their clusters.
        quiet_after: Of a silent cluster, before its runs are read from Prefect one by one.
        stop_poll: Between two looks at a job that is being stopped.
        stop_confirm: After Ray's own wait between SIGTERM and SIGKILL, for the status STOPPED.
        stop_queued: For a PENDING job that was asked to stop, before we call the stop queued.
        explain_after: Of PENDING, before the run says why. Most jobs start sooner.
        explain_tick: Between two looks for jobs to explain.
        explain_refresh: Between two explanations of the same job.
    """

    first_pause: float = 1.0
    submit_patience: float = 60.0
    report_grace: float = 5.0
    retry_delay: float = 5.0
    nodes_end: float = 90.0
    claim_grace: float = 60.0
    slot_interval: float = 10.0
    driver_start: float = 600.0
    left_behind: float = 12.0
    drain: float = 600.0
    sweep: float = 60.0
    quiet_after: float = 60.0
    stop_poll: float = 0.5
    stop_confirm: float = 15.0
    stop_queued: float = 3.0
    explain_after: float = 5.0
    explain_tick: float = 2.5
    explain_refresh: float = 30.0


DEFAULT_TIMING = Timing()
