"""`Category`: the names under which failures are known, and what to do about each.

The names are promises: automations match them. A state's message begins with its category and a
colon. Prefect puts the message on the event of the state (label `prefect.state-message`, 3.8), and
automations match labels with `*`. So related categories share their first words.
"""

from enum import Enum


class Category(Enum):
    """A kind of failure.

    Attributes:
        label: The name in messages and events.
        meaning: What has happened, in general: for the documentation.
        advice: What to do, where nothing more special is known.
    """

    RUNTIME_ENV_PACKAGE_NOT_FOUND = (
        "RuntimeEnvPackageNotFound",
        "pip, uv or conda found no package that satisfies a requirement.",
        "Correct the name or the version in runtime_env, or give the installer the index that "
        "has it.",
    )
    RUNTIME_ENV_PACKAGE_CONFLICT = (
        "RuntimeEnvPackageConflict",
        "Two requirements of the environment exclude each other.",
        "Loosen one of the two requirements in runtime_env, or leave one out.",
    )
    RUNTIME_ENV_INDEX_UNREACHABLE = (
        "RuntimeEnvIndexUnreachable",
        "The installer could not reach its package index from the node.",
        "Let the nodes reach the index, name a mirror with PIP_INDEX_URL on the nodes, or put the "
        "packages into their image.",
    )
    RUNTIME_ENV_TIMEOUT = (
        "RuntimeEnvTimeout",
        "The environment was not ready within its set-up limit.",
        "Raise runtime_env.config.setup_timeout_seconds, or put the packages into the image of "
        "the nodes.",
    )
    RUNTIME_ENV_CODE_MISSING = (
        "RuntimeEnvCodeMissing",
        "`working_dir` or `py_modules` names something that the node cannot find or download.",
        "Check that the URI exists and that every node can read it.",
    )
    RUNTIME_ENV_CODE_TOO_LARGE = (
        "RuntimeEnvCodeTooLarge",
        "A `working_dir` or `py_modules` is larger than Ray takes.",
        "Leave large files out with runtime_env.excludes, or fetch them from storage in the flow.",
    )
    RUNTIME_ENV_TOOL_MISSING = (
        "RuntimeEnvToolMissing",
        "The node lacks a program or library that the environment needs.",
        "Install it in the image of the nodes, or use another kind of environment.",
    )
    RUNTIME_ENV_INVALID = (
        "RuntimeEnvInvalid",
        "Ray does not accept the `runtime_env`.",
        "Correct runtime_env as the cause says.",
    )
    RUNTIME_ENV_FAILED = (
        "RuntimeEnvFailed",
        "The environment could not be set up, for another reason.",
        "Try the same runtime_env with `ray job submit`, and look at runtime_env_setup-*.log of "
        "the node.",
    )
    RESOURCES_INFEASIBLE = (
        "ResourcesInfeasible",
        "The driver asks for more than any node of the cluster has.",
        "Ask for less with the job variables entrypoint_*, or add a node that has it.",
    )
    RESOURCES_BUSY = (
        "ResourcesBusy",
        "The cluster has what the driver asks for, but other jobs were using it.",
        "Limit the concurrency of the work pool, free or add resources, or raise "
        "start_timeout_seconds.",
    )
    START_TIMEOUT = (
        "StartTimeout",
        "The job did not start in time. Resources were not the reason, or the reason is unknown.",
        "Look at the job in the Ray dashboard, or raise start_timeout_seconds.",
    )
    RUN_TIMEOUT = (
        "RunTimeout",
        "The job ran for longer than `run_timeout_seconds`.",
        "Raise run_timeout_seconds, or make the flow faster.",
    )
    JOB_REJECTED = (
        "JobRejected",
        "Ray rejected the job, or did not accept it for a long time.",
        "Correct what Ray's answer names.",
    )
    ENTRYPOINT_NOT_FOUND = (
        "EntrypointNotFound",
        "The flow, its file or the job's command does not exist where the job runs.",
        "Check the deployment's entrypoint and pull steps, or the job variable command.",
    )
    ENTRYPOINT_NOT_STARTED = (
        "EntrypointNotStarted",
        "Ray could not start the command of the job, or lost it while stopping it.",
        "Correct what Ray says; the limits of a command and its environment are 128 KiB each.",
    )
    FLOW_NOT_LOADED = (
        "FlowNotLoaded",
        "A pull step failed, or the flow's file raised an exception when it was imported.",
        "The traceback is in the run's log.",
    )
    MODULE_NOT_FOUND = (
        "ModuleNotFound",
        "The flow imports a module that the driver's Python does not have.",
        "Add its package to runtime_env.pip or to the image of the nodes, or ship your own module "
        "with the flow's code.",
    )
    MODULE_NOT_FOUND_IN_TASK = (
        "ModuleNotFoundInTask",
        "A Ray task or actor imports a module that the Python of its worker does not have.",
        "Add the module to runtime_env (pip or py_modules): the driver's own folder is not on "
        "other nodes.",
    )
    MODULE_NOT_FOUND_ON_NODE = (
        "ModuleNotFoundOnNode",
        "The command of the job is a module that the node's Python does not have.",
        "Install it in the image of the nodes or add it to runtime_env; this package comes along "
        "unless PREFECT_INTEGRATIONS_RAY_WORKER_SHIP_DRIVER is false.",
    )
    PREFECT_MISSING = (
        "PrefectMissing",
        "The Python of the job has no Prefect.",
        "Add prefect to runtime_env.pip, or install it in the image of the Ray nodes.",
    )
    PREFECT_VERSION_MISMATCH = (
        "PrefectVersionMismatch",
        "The Prefect of the job lacks what this worker's driver needs.",
        "Give the job the Prefect version of the worker, in runtime_env.pip or the image.",
    )
    PYTHON_VERSION_MISMATCH = (
        "PythonVersionMismatch",
        "The Python of the job is too old, or differs from that of its Ray cluster or of the "
        "process that called the flow.",
        "Use one Python version, 3.11 or later, for the nodes, for runtime_env and where flows "
        "are called.",
    )
    BUNDLE_MISSING = (
        "BundleMissing",
        "The run has no deployment, and nothing sent its code.",
        "Call the flow again. The process that called it ended before it had sent the code, or "
        "the run was created in another way; such a run needs a deployment.",
    )
    BUNDLE_DAMAGED = (
        "BundleDamaged",
        "The code of a run without a deployment is not what its caller sent.",
        "Call the flow again, with the same release of prefect-ray-worker as the pool's workers.",
    )
    PREFECT_API_UNREACHABLE = (
        "PrefectApiUnreachable",
        "The Prefect API does not answer from where the job runs.",
        "Set env.PREFECT_API_URL to an address that the Ray nodes can reach.",
    )
    PREFECT_API_UNAUTHORIZED = (
        "PrefectApiUnauthorized",
        "The Prefect API rejects the job's credentials, or the job has none.",
        "Give the job a key: set PREFECT_API_KEY (or PREFECT_API_AUTH_STRING) in the environment "
        "of the Ray nodes, or name the variable of the nodes that holds it in "
        "PREFECT_INTEGRATIONS_RAY_WORKER_NODE_SECRETS, or have the worker send its own in plain "
        "text with PREFECT_INTEGRATIONS_RAY_WORKER_SEND_SECRETS=true.",
    )
    PREFECT_API_WRONG = (
        "PrefectApiWrong",
        "The server at PREFECT_API_URL does not know the run, or is not a Prefect API.",
        "Set env.PREFECT_API_URL to the API of the worker's own Prefect; the URL of a server ends "
        "in /api.",
    )
    PREFECT_SETTING_INVALID = (
        "PrefectSettingInvalid",
        "A Prefect setting has a value, or names a file, that cannot be used where the job runs.",
        "Correct it in env or in the environment of the Ray nodes.",
    )
    OUT_OF_MEMORY = (
        "OutOfMemory",
        "The kernel, or Ray's memory monitor, killed a process of the run because memory was full.",
        "Raise entrypoint_memory, choose a larger node, or make the flow need less.",
    )
    KILLED_BY_SIGNAL = (
        "KilledBySignal",
        "A signal ended a process of the run, and there is no proof that memory was the reason.",
        "Look at the job's log and at the node's own log for who sent the signal.",
    )
    DRIVER_EXITED = (
        "DriverExited",
        "A process of the run ended with its own exit code.",
        "Look for the reason in the job's log; os._exit, or a library that calls it, logs nothing.",
    )
    NO_FINAL_STATE = (
        "NoFinalState",
        "The driver exited with code 0, and the run had no final state.",
        "Look for what ends the process early: os._exit, sys.exit in a thread, a command that does "
        "not run the flow.",
    )
    STOPPED_OUTSIDE = (
        "StoppedOutside",
        "The job was stopped, and not by Prefect.",
        "Run the flow again, or set PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR=reschedule to have "
        "that done.",
    )
    NODE_DIED = (
        "NodeDied",
        "The node of the driver died or was taken away.",
        "Run the flow again; on spot or preemptible nodes place the driver on another node.",
    )
    SUPERVISOR_DIED = (
        "SupervisorDied",
        "Ray's JobSupervisor of the job died or never came up, and Ray ended the job.",
        "Run the flow again, and look for it in the log of the driver's node.",
    )
    HEAD_LOST = (
        "HeadLost",
        "The head of the cluster was restarted and has lost its jobs.",
        "Give the cluster GCS fault tolerance to survive that, and run the flow again.",
    )
    JOB_DELETED = (
        "JobDeleted",
        "The cluster answers, and does not have the job any more.",
        "Look for what deletes Ray Jobs, and run the flow again.",
    )
    CLUSTER_UNREACHABLE = (
        "ClusterUnreachable",
        "The cluster did not answer for a long time, and the run gave no sign of life.",
        "Bring the cluster back or correct its address, and run the flow again.",
    )
    CLUSTER_DELETED = (
        "ClusterDeleted",
        "The Kubernetes cluster does not have the run's RayCluster any more, or is deleting it.",
        "Look for who deletes RayClusters, or raise kuberay.max_lifetime_seconds, and run the flow "
        "again.",
    )
    CLUSTER_FORBIDDEN = (
        "ClusterForbidden",
        "The worker lacks a right in Kubernetes, or Kubernetes rejects its credentials.",
        "Give the worker's service account the rights of deployment-templates/kuberay-per-run.",
    )
    CLUSTER_IMAGE = (
        "ClusterImage",
        "The image of the cluster cannot be pulled.",
        "Correct kuberay.image, or give the namespace the pull secret of its registry.",
    )
    CLUSTER_NAMESPACE_GONE = (
        "ClusterNamespaceGone",
        "The namespace of the cluster does not exist, or is being deleted.",
        "Correct kuberay.namespace, or create the namespace.",
    )
    CLUSTER_QUOTA = (
        "ClusterQuota",
        "A ResourceQuota of the namespace left no room for the cluster until the start timeout.",
        "Limit the concurrency of the work pool, raise the quota or kuberay.start_timeout_seconds.",
    )
    CLUSTER_SOURCE_FAILED = (
        "ClusterSourceFailed",
        "The source of clusters that cluster_source names could not create the run's cluster.",
        "Correct what the cause says; for help ask the authors of the package that it names.",
    )
    CLUSTER_SPEC_INVALID = (
        "ClusterSpecInvalid",
        "Kubernetes or KubeRay rejects the cluster's specification, or cannot start a container "
        "according to it.",
        "Correct the field of the job variable kuberay that the cause names.",
    )
    CLUSTER_START_TIMEOUT = (
        "ClusterStartTimeout",
        "The cluster did not accept jobs in time, for an unknown reason.",
        "Look at its pods with kubectl, or raise kuberay.start_timeout_seconds.",
    )
    CLUSTER_UNSCHEDULABLE = (
        "ClusterUnschedulable",
        "No node had room for the cluster's pods until the start timeout.",
        "Ask for less in kuberay.head and kuberay.workers, add nodes, or raise "
        "kuberay.start_timeout_seconds.",
    )
    HEAD_CRASH_LOOP = (
        "HeadCrashLoop",
        "The head of the cluster crashes again and again while it starts.",
        "Correct what its last lines say: a wrong image, or too little memory for the head.",
    )
    KUBERAY_MISSING = (
        "KubeRayMissing",
        "The Kubernetes cluster does not know RayClusters.",
        "Install KubeRay 1.5.1 or later there, or use an existing cluster.",
    )
    KUBERNETES_UNREACHABLE = (
        "KubernetesUnreachable",
        "The Kubernetes API did not answer, or could not be asked, until the start timeout.",
        "Check kuberay.kubeconfig and the network between the worker and the API server.",
    )
    OPERATOR_SILENT = (
        "OperatorSilent",
        "KubeRay's operator did nothing for the cluster until the start timeout.",
        "Check that the operator runs and watches the namespace of the cluster.",
    )
    JOB_FAILED = (
        "JobFailed",
        "The job failed in a way that this release does not know.",
        "Look at the job in the Ray dashboard.",
    )

    def __init__(self, label: str, meaning: str, advice: str) -> None:
        self.label = label
        self.meaning = meaning
        self.advice = advice

    def __str__(self) -> str:
        return self.label
