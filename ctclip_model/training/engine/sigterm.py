"""SIGTERM, sent by schedulers and torchrun to end a training: noted at once, acted on between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """A flag that SIGTERM sets, and a function that it calls."""

    def __init__(self, then: Callable[[], None] | None = None) -> None:
        self.is_made, self.then = False, then

    def note(self, number: int, frame: FrameType | None) -> None:
        self.is_made = True
        if self.then is not None:
            self.then()


@contextmanager
def heeding_sigterm(then: Callable[[], None] | None = None) -> Iterator[StopRequest]:
    """Notes SIGTERM inside the context. In a thread other than the main one no signal arrives, and none is noted."""
    request = StopRequest(then)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, request.note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
