"""Deadlines for calls that may block for ever, such as a read from a file system that no longer answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def run_with_deadline(timeout_s: float, function: Callable[[], T]) -> T:
    """Calls a function, and returns or raises as it does. Raises `TimeoutError` if it takes longer than `timeout_s`.

    A function that is too late goes on in its thread, because a blocked system call cannot be ended.
    """
    outcome: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:  # noqa: BLE001  raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not outcome:
        raise TimeoutError(f"took more than {timeout_s:g} s")
    return outcome[0]
