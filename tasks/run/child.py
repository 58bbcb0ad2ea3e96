"""Child processes that end when this process is killed."""

from __future__ import annotations

import ctypes
import signal
import sys

C_LIBRARY = ctypes.CDLL(None)  # loaded before a fork, since little is safe after one
PR_SET_PDEATHSIG = 1  # Linux: sends a signal to this process when its parent dies


def end_with_parent() -> None:
    """For `subprocess.Popen(preexec_fn=...)`: SIGTERM ends the child as soon as its parent is gone."""
    if sys.platform == "linux":
        C_LIBRARY.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
