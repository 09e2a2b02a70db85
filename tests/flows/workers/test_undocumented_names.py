"""Names of Prefect and Dask that flows use although their documentation does not promise them."""

import importlib
import inspect
import re

import pytest

USES = [
    (
        "prefect.task_engine",
        "run_task_sync",
        "task_run_id return_type dependencies",
        "WorkerTaskRunner: engine threads",
    ),
    ("prefect.context", "FlowRunContext", "task_run_assets", "WorkerTaskRunner: removes entries of finished task runs"),
    ("prefect.futures", "PrefectConcurrentFuture", "task_run_id wrapped_future", "WorkerTaskRunner.submit"),
    ("prefect.logging.handlers", "APILogHandler", "flush flow_run_id task_run_id", "log lines of workers in the UI"),
    ("prefect.logging.handlers", "PrefectConsoleHandler", "console", "live_display: log lines above the display"),
    ("prefect.server.api.server", "create_app", "ephemeral final", "a run's own server"),
    ("prefect.settings", "Settings", "to_environment_variables", "never_left_running: API of the guard"),
    ("prefect_dask", "DaskTaskRunner", "client", "WorkerTaskRunner: Dask's client"),
    ("dask._task_spec", "Task", "data_producer", "WorkerTaskRunner: tasks that wait at the scheduler"),
    ("distributed", "Worker", "log_event", "events from workers to the flow"),
    ("distributed", "Client", "subscribe_topic", "events from workers to the flow"),
    ("distributed", "SpecCluster", "workers worker_spec new_spec scale_down", "SlurmWorkers: which jobs there are"),
    ("distributed.deploy.spec", "ProcessInterface", "status", "SubmittedJob: jobs that have ended"),
    ("distributed.scheduler", "WorkerState", "processing nanny", "SlurmWorkers: jobs without tasks, workers that died"),
    (
        "distributed.scheduler",
        "Scheduler",
        "remove-worker processing-tasks expected retire_workers",
        "SlurmNodes: workers that disappear; SlurmWorkers: workers that leave a node",
    ),
    ("dask_jobqueue.slurm", "SLURMJob", "submit_command", "SubmittedJob: excluded nodes"),
    ("dask_jobqueue.core", "Job", "job_id job_id_regexp", "SubmittedJob: slurm_settings.job_id_position"),
]


@pytest.mark.parametrize(("module", "name", "members", "use"), USES)
def test_an_undocumented_name_is_still_there(module: str, name: str, members: str, use: str) -> None:
    owner = getattr(importlib.import_module(module), name, None)
    assert owner is not None, f"{module}.{name} is gone; find another way for {use}"
    source = inspect.getsource(owner)
    gone = [member for member in members.split() if not re.search(rf"\b{member}\b", source)]
    assert not gone, f"{module}.{name} has no {' nor '.join(gone)} any more; find another way for {use}"
