"""`RayBoundFlow`: a flow that runs in the cluster of a work pool when it is called."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect.flows import Flow, InfrastructureBoundFlow

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.futures import PrefectFuture

    from prefect_ray_worker.adhoc.following import RayFlowRunFuture

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class CallTerms:
    """How a bound flow is called, apart from its job variables. See `ray_job`."""

    include_files: tuple[str, ...] = ()
    include_files_base_dir: Path | str | None = None
    dependencies: str | Sequence[str] = "cluster"
    stream_logs: bool = True


class RayBoundFlow(InfrastructureBoundFlow[P, R]):
    """A flow that is bound to a `ray` work pool. `ray_job` returns it.

    Args:
        flow: The flow.
        work_pool: The pool's name.
        job_variables: Job variables of the flow's calls.
        terms: The other arguments of `ray_job`.
    """

    terms: CallTerms

    def __init__(
        self, flow: Flow[P, R], work_pool: str, job_variables: dict[str, Any], terms: CallTerms
    ) -> None:
        super().__init__(
            flow.fn,
            name=flow.name,
            work_pool=work_pool,
            job_variables=job_variables,
            worker_cls=None,  # pyright: ignore[reportArgumentType] (loaded when it is asked for)
            include_files=list(terms.include_files),
            include_files_base_dir=terms.include_files_base_dir,
        )
        own = {
            name: vars(self)[name]
            for name in (
                "work_pool",
                "job_variables",
                "launcher",
                "include_files",
                "include_files_base_dir",
            )
        }
        vars(self).update({**vars(flow), **own, "terms": terms})

    @property
    def worker_cls(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The worker's class, loaded on demand: where the flow runs, nothing needs it."""
        from prefect_ray_worker.worker import RayWorker

        return RayWorker

    @worker_cls.setter
    def worker_cls(self, _: Any) -> None:
        """Ignore what Prefect's constructor sets."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *args: Any,
        return_state: bool = False,
        wait_for: "Iterable[PrefectFuture[Any]] | None" = None,
        **kwargs: Any,
    ) -> Any:
        """Run the flow in the cluster, print its logs and return its value.

        Ctrl-C cancels the run and waits for its end. A second Ctrl-C stops waiting.

        Args:
            *args: Arguments of the flow.
            return_state: Return the run's final state instead of the value.
            wait_for: Futures to wait for before the run is created.
            **kwargs: Arguments of the flow.

        Raises:
            Exception: The flow's own exception, or Prefect's `CrashedRun` or `CancelledRun`.
        """
        from prefect_ray_worker.adhoc.waiting import follow, follow_async

        if self.isasync:

            async def call() -> Any:
                begin = self._beginning(args, kwargs, wait_for)
                return await follow_async(begin, self.terms.stream_logs, return_state=return_state)

            return call()
        begin = self._beginning(args, kwargs, wait_for)
        return follow(begin, self.terms.stream_logs, return_state=return_state)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> "RayFlowRunFuture[R]":
        """Create a run for a worker of the pool, and return a future at once."""
        return self._beginning(args, kwargs)()

    def submit_to_work_pool(self, *args: P.args, **kwargs: P.kwargs) -> "RayFlowRunFuture[R]":
        """Do the same as `submit`: a caller never submits to the cluster itself."""
        return self._beginning(args, kwargs)()

    async def retry(self, flow_run: "FlowRun") -> Any:
        """Repeat a flow run with the code that it was called with, and return its value.

        Args:
            flow_run: A run that has ended.
        """
        from prefect_ray_worker.adhoc.calling import run_again
        from prefect_ray_worker.adhoc.waiting import follow_async

        return await follow_async(lambda: run_again(flow_run.id), self.terms.stream_logs)

    def with_options(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        job_variables: dict[str, Any] | None = None,
        include_files: Sequence[str] | None = None,
        include_files_base_dir: Path | str | None = None,
        dependencies: str | Sequence[str] | None = None,
        stream_logs: bool | None = None,
        **options: Any,
    ) -> "RayBoundFlow[P, R]":
        """Return a copy of this flow with other options.

        Args:
            job_variables: Replace all job variables.
            include_files: Replace the patterns.
            include_files_base_dir: Replace the folder that the patterns are relative to.
            dependencies: See `ray_job`.
            stream_logs: See `ray_job`.
            **options: Options of Prefect's `Flow.with_options`.
        """
        given = {
            "include_files": None if include_files is None else tuple(include_files),
            "include_files_base_dir": include_files_base_dir,
            "dependencies": dependencies,
            "stream_logs": stream_logs,
        }
        changed = {name: value for name, value in given.items() if value is not None}
        flow: Flow[P, R] = Flow.with_options(self, **options)
        variables = self.job_variables if job_variables is None else job_variables
        return RayBoundFlow(flow, self.work_pool, dict(variables), replace(self.terms, **changed))

    def _beginning(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        wait_for: "Iterable[PrefectFuture[Any]] | None" = None,
    ) -> Any:
        """Return what creates the run of a call."""
        from functools import partial

        from prefect.utilities.callables import get_call_parameters

        from prefect_ray_worker.adhoc.calling import FlowCall, begin

        parameters = get_call_parameters(self.fn, args, kwargs)
        return partial(begin, FlowCall(self, parameters, self.terms, tuple(wait_for or ())))
