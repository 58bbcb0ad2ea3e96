"""The loss of the Prefect server of a command. Imports nothing heavy: each command asks for it at its end."""

from __future__ import annotations

import threading

IS_LOST = threading.Event()  # set once the server of a command is lost
