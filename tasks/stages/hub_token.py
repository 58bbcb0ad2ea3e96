"""The token of the Hub that Prefect keeps, for workers on which nobody is logged in."""

from __future__ import annotations

from huggingface_hub import get_token
from prefect.blocks.system import Secret

from tasks.settings import HUB_TOKEN_BLOCK


def load_hub_token() -> str | None:
    """What the Secret block holds, where HF_TOKEN and the Hub's login file give none; it never becomes a parameter."""
    if get_token():
        return None  # the Hub's client finds that by itself
    try:
        return str(Secret.load(HUB_TOKEN_BLOCK).get())  # type: ignore[union-attr]
    except ValueError:  # there is no such block
        return None
