"""Waits between requests to a place that does not answer: told to the user, and ended by an interruption."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tenacity import RetryCallState

logger = logging.getLogger(__name__)

Sleep = Callable[[float], None]
Item = TypeVar("Item")
Result = TypeVar("Result")

SHORT_WAIT_S = 4.0  # up to here nothing is told: such faults are common and soon over
TOLD_EVERY_S = 60.0  # seconds between two lines about one place, whatever number of threads ask it

_told_at: dict[str, float] = {}
_lock = threading.Lock()


def telling(place: str, attempts: int, name_fault: Callable[[BaseException], str]) -> Callable[[RetryCallState], None]:
    """For `tenacity.Retrying(before_sleep=...)`: warns that a place is asked again.

    `name_fault` names a fault in a word or two. It must not quote a library, whose errors may hold a signature.
    """

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait_s = state.next_action.sleep if state.next_action else 0.0
        if error is None or wait_s < SHORT_WAIT_S or not _is_due(place):
            return
        logger.warning(
            "%s: %s. It is asked again in %.0f s, attempt %d of %d", place, name_fault(error), wait_s,
            state.attempt_number + 1, attempts,
        )  # fmt: skip

    return tell


def _is_due(place: str) -> bool:
    with _lock:
        is_due = time.monotonic() - _told_at.get(place, -TOLD_EVERY_S) >= TOLD_EVERY_S
        if is_due:
            _told_at[place] = time.monotonic()
    return is_due


class _StoppedError(Exception):
    """Ends a thread whose result nobody waits for."""


def ask_in_threads(ask: Callable[[Item, Sleep], Result], items: Sequence[Item], count_threads: int) -> list[Result]:
    """Results of `ask(item, sleep)`, in the order of the items.

    An error of one, or an interruption of this thread, ends the waits of all, and items that have not begun are left
    out. Requests that are under way in a library are waited for.
    """
    stopped = threading.Event()

    def sleep(duration_s: float) -> None:
        if stopped.wait(duration_s):
            raise _StoppedError

    with ThreadPoolExecutor(count_threads) as pool:
        try:
            return list(pool.map(lambda item: ask(item, sleep), items))
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
