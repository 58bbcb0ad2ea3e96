"""The key of a language model's server, from the environment or a Prefect Secret. It is never a parameter."""

from __future__ import annotations

import os

from prefect.blocks.system import Secret

from tasks.settings import ENDPOINT_KEY_BLOCK, ENDPOINT_KEY_VARIABLE
from tasks.stages.prefect_pages import LOST


def load_endpoint_key() -> str | None:
    """Key of the environment, or else of the Secret block. None: there is neither, and a server may need none."""
    if key := os.environ.get(ENDPOINT_KEY_VARIABLE):
        return key
    try:
        return str(Secret.load(ENDPOINT_KEY_BLOCK).get())  # type: ignore[union-attr]
    except (ValueError, *LOST):  # no block has this name, or the server is lost
        return None
