"""Pause of Python's garbage collector for work that makes many small objects and no cycles of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pausing_collector() -> Iterator[None]:
    """Looks for no unreachable cycles during a block, or during each call of a function that it decorates.

    A plan of 50,188 volumes makes a million objects that stay until its end. The collector would visit all of them
    again and again, which takes a third of the plan's time.
    """
    was_running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_running:
            gc.enable()
