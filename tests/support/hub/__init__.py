"""A Hugging Face Hub on loopback that serves folders as repositories, and misbehaves like the real one on request."""

from support.hub.repositories import HubRepository
from support.hub.server import LoopbackHub

__all__ = ["HubRepository", "LoopbackHub"]
