"""The Hub's token as a Prefect Secret, for workers without a login."""

from __future__ import annotations

from huggingface_hub import get_token
from prefect.blocks.system import Secret

from tasks.settings import HUB_TOKEN_BLOCK


def load_hub_token() -> str | None:
    """Token of the Secret block, or None if HF_TOKEN or the Hub's login file gives one. It is never a parameter."""
    if get_token():
        return None  # the Hub's client finds its own token
    try:
        return str(Secret.load(HUB_TOKEN_BLOCK).get())  # type: ignore[union-attr]
    except ValueError:  # no block has this name
        return None
