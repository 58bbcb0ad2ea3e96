"""An end to what would wait for ever, such as a read from a file system that no longer answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def run_with_deadline(timeout_s: float, function: Callable[[], T]) -> T:
    """What the function returns or raises; `TimeoutError` where it takes longer.

    It is then left to its thread, which nobody waits for any more: a call that hangs in the system cannot be ended.
    """
    outcome: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:  # noqa: BLE001  raised again by the caller
            errors.append(error)

    thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not outcome:
        raise TimeoutError(f"it took more than {timeout_s:g} s")
    return outcome[0]
