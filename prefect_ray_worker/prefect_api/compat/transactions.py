"""Tell the transactions that user code opens from those that Prefect's task engines open."""

import weakref
from functools import cache
from typing import TYPE_CHECKING, Any

from prefect.context import TaskRunContext
from prefect.transactions import get_transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.transactions import BaseTransaction

# By `id`: a transaction cannot be hashed, and an attribute would be one of its fields.
_engines_own: "weakref.WeakValueDictionary[int, BaseTransaction]" = weakref.WeakValueDictionary()


@cache
def note_transactions_of_engines() -> None:
    """Note each transaction that a task engine opens from now on.

    The engine opens one around each task, which is the parent of any that is opened in the task.
    It has no field by which it differs from a user's (3.8.8): those can have a key, a store and
    the logger of the task run as well.
    """
    from prefect.task_engine import AsyncTaskRunEngine, SyncTaskRunEngine

    # A runner may be made in a task: the outermost transaction there is the engine's.
    present = get_transaction()
    if present is not None and TaskRunContext.get() is not None and present.get_parent() is None:
        _note(present)
    for engine in (SyncTaskRunEngine, AsyncTaskRunEngine):
        engine.transaction_context = _noting(engine.transaction_context)


def is_in_transaction_of_user() -> bool:
    """Return whether a transaction is open here that no task engine has opened."""
    transaction = get_transaction()
    seen: set[int] = set()
    # The parent of one that is closed is the present one (3.8.8). A thread that outlives the task
    # that started it has such a one.
    while transaction is not None and id(transaction) not in seen:
        if _engines_own.get(id(transaction)) is not transaction:
            return True
        seen.add(id(transaction))
        transaction = transaction.get_parent()
    return False


def _note(transaction: "BaseTransaction") -> None:
    _engines_own[id(transaction)] = transaction


def _noting(plain: "Callable[[Any], Any]") -> Any:
    def transaction_context(engine: Any) -> _Noted:
        return _Noted(plain(engine))

    return transaction_context


class _Noted:
    """A context that notes the transaction which it opens."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __enter__(self) -> Any:
        transaction = self._context.__enter__()
        _note(transaction)
        return transaction

    def __exit__(self, *exc_info: object) -> Any:
        return self._context.__exit__(*exc_info)

    async def __aenter__(self) -> Any:
        transaction = await self._context.__aenter__()
        _note(transaction)
        return transaction

    async def __aexit__(self, *exc_info: object) -> Any:
        return await self._context.__aexit__(*exc_info)
