"""Wrap every private or undocumented Prefect API that we use.

Check these files after each Prefect upgrade. `tests/unit/prefect_api/test_compat.py` names each API
that Prefect has removed.
"""

READ = (
    "prefect._internal.states:exception_to_crashed_state_sync",
    "prefect._internal.uuid7:uuid7",
    "prefect._internal.control_listener:_set_intent",
    "prefect._internal.metrics:RunMetrics",
    "prefect.client.orchestration:PrefectClient.__init__",
    "prefect.client.orchestration:SyncPrefectClient.__init__",
    "prefect.context:start_client_metrics_server",
    "prefect.engine:_drive_run_flow_result",
    "prefect.events.worker:EventsWorker._instances",
    "prefect.events.worker:EventsWorker.instance",
    "prefect.events.worker:ProcessPoolForwardingEventsClient",
    "prefect.flow_engine:_send_heartbeats",
    "prefect.flow_engine:load_flow",
    "prefect.futures:threading.Event",
    "prefect.logging.handlers:APILogWorker.drain_all",
    "prefect.task_engine:AsyncTaskRunEngine.transaction_context",
    "prefect.task_engine:BaseTaskRunEngine.compute_transaction_key",
    "prefect.task_engine:SyncTaskRunEngine.transaction_context",
    "prefect.task_engine:exception_to_crashed_state",
    "prefect.task_engine:exception_to_crashed_state_sync",
    "prefect.task_runners:ThreadPoolTaskRunner.cancel_all",
    "prefect.task_runners:_initialize_process_pool_worker",
    "prefect.runner._workspace_resolver:prepare_workspace_for_flow_run",
    "prefect.workers.base:BaseJobConfiguration._base_environment",
)
"""Prefect names that these modules use (3.8.8); a test checks that each still exists."""
