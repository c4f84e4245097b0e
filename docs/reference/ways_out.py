"""What to do about messages that do not say it themselves; `messages.md` shows it beside them.

A test fails for a message that neither says it nor stands here, and for one here that is gone.
"""

_AGAIN = "Nothing: the worker asks again."
_CALL_AGAIN = (
    "Call the flow again. If it happens again, see that caller and worker have the same release "
    "of prefect-ray-worker."
)
_FAULT = (
    "The traceback follows in the log. Nothing else is affected; report it if it happens again."
)
_CREDENTIALS = "Check the token or file that the message names; runs wait meanwhile."

OF_KINDS = {
    "AgentUnreachable": "Nothing: the worker reads the log through the dashboard instead.",
    "AlreadyThere": "Delete the object that has the name, or wait until its deletion has ended.",
    "BundleDamaged": _CALL_AGAIN,
    "BundleMissing": _CALL_AGAIN,
    "BundleUnusable": _CALL_AGAIN,
    "ClusterSourceUnclear": "Nothing: the worker asks again. If it lasts, ask its authors.",
    "ClusterUnreachable": "Check that the cluster's dashboard runs and that the worker reaches it.",
    "Conflict": "Nothing: the worker reads the object again.",
    "InfrastructureNotAvailable": "The state of the run stays. Cancel it again, or stop the job in "
    "Ray's dashboard.",
    "InfrastructureNotFound": "Nothing: there is no job that could be stopped.",
    "JobAlreadyExists": "Nothing: the worker reads the job, and follows it if it is its own.",
    "JobNotTerminal": "Nothing: the record is deleted later.",
    "KubernetesRejected": "Change what Kubernetes names in `kuberay`.",
    "KubernetesUnauthorized": "Renew the kubeconfig or the service account's token.",
    "KubernetesUnreachable": _AGAIN,
    "KubeRayMissing": "Install KubeRay 1.5.1 or later.",
    "LogNotFound": "Nothing: the run's log says how much of it is missing.",
    "LogsRefused": "Nothing: a line in the run's log stands for those that Prefect refused.",
    "LogsUnclear": "Nothing: the worker asks Prefect which lines it has.",
    "ManifestRefused": "Change the field that Kubernetes names in `kuberay` or its manifest.",
    "NamespaceTerminating": "Wait until the namespace is gone and create it again, or set "
    "`kuberay.namespace`.",
    "NotRayDashboard": "Set the address to Ray's dashboard: http://<head>:8265.",
    "ObjectMissing": "Create what Kubernetes does not have, or correct its name in `kuberay`.",
    "ObjectReplaced": "Nothing: the worker leaves the other object alone.",
    "RequestRejected": "Change what Ray names in the job variables.",
    "Unpicklable": "Create it inside the task, or pass what it is made from.",
}

_OF_MESSAGES: list[tuple[str, list[str]]] = [
    (
        _AGAIN,
        [
            "Cannot ask Prefect …: …",
            "Cannot look after the run … now: …",
            "Cannot look for orphaned runs: …",
            "Cannot open the pool's own cluster now: …",
            "Cannot sweep … now: …",
            "Cannot sweep the clusters of ended runs now: …",
            "Polling … failed",
            "Prefect has not taken the log of the Ray Job … for long: …",
            "The Prefect API does not answer (…); trying again in … s.",
            "The Prefect API is busy or away (…); asking again in … s.",
            "The Ray Job … was asked to stop and has not ended yet (…). Trying again.",
            "The cluster … is not deleted yet: …",
            "The Ray Job could not be submitted again yet: …",
            "The Ray Job has not ended yet (…). Trying again.",
            "The lease … of a deployment's slot was not renewed: …",
            "This run is adopted a little later: …",
            "Whether … is gone is not known: …",
            "… cannot be deleted: …",
        ],
    ),
    (
        _FAULT,
        [
            "The driver cannot notice a cancellation of its run any more",
            "The end of a task could not be processed",
            "The loss of a task could not be processed",
            "… failed",
        ],
    ),
    (
        "The run is unaffected: only what the message names is missing on its page.",
        [
            "Cannot ask Prefect why this run has to end: …",
            "Cannot read task run …",
            "Cannot say what jobs wait for: …",
            "Cannot say what … waits for: …",
            "Cannot show what the run … waits for: …",
            "Cannot tell what the events of this flow run relate to",
            "Events or logs of tasks could not be sent to the Prefect API",
            "… events and … lines of logs of tasks could not be sent to the Prefect API",
            "… events and … lines of logs of tasks could not be sent to the Prefect API "
            "within … s. They are lost if this process ends now.",
            "The API could not be told that tasks are cancelled",
            "The event … was not sent: …",
            "The run … has no link to its job: the Prefect API did not answer within … s.",
            "The run … has no link to its job: …",
            "The state of task run … could not be reported",
            "The state of … could not be set: …",
        ],
    ),
    (_CREDENTIALS, ["The credentials for … could not be read anew: …"]),
    (
        "Read the traceback that follows, and correct your function.",
        [
            "A callback of task run … has failed",
            "The flow could not be loaded to run its on_crashed hooks.",
            "The flow could not be loaded. …",
            "The hook … failed",
        ],
    ),
    (
        "Read what is left of the log in Ray's dashboard. To keep logs of lost nodes, store Ray's "
        "log directory elsewhere.",
        [
            "Prefect refuses any log of this run.",
            "The output of the Ray Job is not forwarded any more.",
            "The rest of the log of Ray Job … is lost: the Ray cluster does not have the job any "
            "more.",
            "The rest of the log of Ray Job … is missing: it could not be fetched from the Ray "
            "cluster at … within … s after the end of the run….",
            "The rest of the log of Ray Job … is not forwarded: it has not come within … s after "
            "the end of the run, and its cluster is deleted.",
        ],
    ),
    (
        "Check the cluster with `prefect-ray-worker doctor`. The run continues if its job does.",
        ["The Ray cluster does not answer; the run is left as it is until it does. …"],
    ),
    (
        "Nothing: the job cannot run the flow any more.",
        [
            "Ray Job … is not watched any more. It had not started, and the Ray cluster at … does "
            "not answer. If the job starts later, its driver sees that the run has ended, and "
            "ends.",
        ],
    ),
    (
        "Look up the error in the log of the Prefect server. The worker asks again.",
        [
            "The flow run … stays scheduled; it is tried again in … s: …",
            "This run waits for the Prefect API, which does not answer (…). The worker tries again "
            "for up to an hour.",
            "This run stays scheduled; the worker tries again, less and less often: …",
        ],
    ),
    (
        "Nothing: something else has decided about the run. Start it again if you need it.",
        [
            "The flow run … is not submitted by this worker: since it was claimed, it has ended, "
            "was rescheduled, or was submitted by another worker.",
        ],
    ),
    (
        "Nothing: something else has decided about the run, and its job follows.",
        [
            "Another attempt at this flow run has begun: this one ends.",
            "Stopping Ray Job …: its flow run was deleted.",
            "The flow run was deleted; its Ray Job is stopped.",
            "The flow run … is not submitted by this worker: another worker has taken it over, or "
            "it was deleted.",
            "The flow run was set to … from outside: this driver ends.",
            "The state of the flow run was set from outside while its Ray Job … was going on. "
            "Stopping the job; the state stays.",
        ],
    ),
    (
        "The run is tried again. If it happens often, look up the category with which the message "
        "begins.",
        [
            "Task run '…' is run again, … more times if need be: …",
            "… The run is tried again in … s (infrastructure_retries).",
        ],
    ),
    ("The state of the task run says why.", ["Task run '…' has …: …"]),
    (
        "Set the limits again in the pool or the deployment; new runs use them.",
        [
            "The configuration with which this run was submitted cannot be used any more (…): its "
            "limits are the defaults from now on."
        ],
    ),
    (
        "Pass the value to the tasks that need it, in a form that can be pickled.",
        ["Tasks do not see the flow's parameter …, a …: it cannot be pickled (…)"],
    ),
    (
        "Put the code into the image, or into `runtime_env.working_dir`.",
        ["The flow's folder is not shipped to the Ray cluster: …"],
    ),
    (
        "Nothing: they are ended so that they do not hold memory or GPUs.",
        ["Ended … processes that tasks had started whose process has died"],
    ),
    (
        "Return a value that can be pickled, or keep it in storage.",
        ["The caller of this flow run gets no answer: …"],
    ),
    (
        "Correct the argument that Ray names.",
        ["remote_options of …: …"],
    ),
    (
        "See whether the server's task run recorder is on, and make it faster: "
        "[many short tasks](../how-to/fan-out.md#many-short-tasks).",
        [
            "The Prefect API has recorded none of … events of tasks within … s. The states of task "
            "runs may be missing there."
        ],
    ),
    (
        "Leave `ray.shutdown()` to the task runner, or call it after the flow.",
        ["Ray was shut down in the flow's process before the task had ended."],
    ),
    (
        "Persist the results of tasks, or run the flow again.",
        ["Task run … has completed, but its result cannot be had: …"],
    ),
    (
        "Write http://<head>:8265.",
        ["… An address begins with http:// or https://."],
    ),
    (
        "Remove what follows the path.",
        ["…… must not have a query or a fragment."],
    ),
    (
        "Install Ray where the worker runs, or set an address.",
        ["`ray start` cannot be executed (…)."],
    ),
    (
        "Nothing: the worker was stopped while it started its Ray.",
        ["The start of the local Ray was called off."],
    ),
    (
        "Give `kuberay.manifest` what the message names.",
        [
            "has a pod template without containers",
            "has no headGroupSpec",
            "job variable 'kuberay.manifest' ….",
        ],
    ),
    (
        "Set `kuberay.namespace` to one of those, or allow it in the worker's setting.",
        [
            "job variable 'kuberay.namespace' is …, and this worker makes clusters in … only "
            "(PREFECT_INTEGRATIONS_RAY_WORKER_KUBERAY_NAMESPACES)."
        ],
    ),
    (
        "Give the worker its rights in that namespace, or take it out of the setting.",
        [
            "The clusters in namespace …, one of those in "
            "PREFECT_INTEGRATIONS_RAY_WORKER_KUBERAY_NAMESPACES, are not swept: …"
        ],
    ),
    ("Create the namespace, or set `kuberay.namespace`.", ["There is no namespace …."]),
    (
        "Delete the cluster that has the name, and run the flow again.",
        [
            "There is a RayCluster … that was not made for this run.",
            "There is a RayCluster … that was not made for this work pool.",
        ],
    ),
    (
        "Find out who deleted it; `infrastructure_retries` has the run tried again.",
        ["The RayCluster … was deleted."],
    ),
    (
        "Correct the kubeconfig.",
        [
            "A certificate of the kubeconfig for … cannot be used (…).",
            "`server` of the kubeconfig is not a URL.",
            "`server` of the kubeconfig must be https://host[:port][/path], without credentials.",
        ],
    ),
    (
        "Write `runtime_env.uv` as a list, or leave `dependencies` out.",
        ["dependencies are added to runtime_env.uv, which has to be a list of requirements."],
    ),
    (
        "Install uv, or use another value of `dependencies`.",
        ["dependencies='lock' needs uv, which is not on the PATH."],
    ),
    ("Correct what uv says.", ["uv could not export uv.lock: …"]),
    (
        "Give the work pool a storage block, or leave out large files.",
        ["The bundle is too large for the inputs of a flow run."],
    ),
    (
        "Call the flow again: each call has a run of its own.",
        ["The flow run … has another bundle already (…)."],
    ),
    (
        "Call from the Python that the nodes have, or give the nodes an image with yours.",
        ["The flow was called from Python …, and the job runs Python … (…)."],
    ),
]
OF_MESSAGES = {text: way for way, texts in _OF_MESSAGES for text in texts}
