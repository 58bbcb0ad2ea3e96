"""A Hugging Face Hub on loopback that serves folders as repositories, and misbehaves like the real one on request."""

from hub.repositories import HubRepository
from hub.server import LoopbackHub

__all__ = ["HubRepository", "LoopbackHub"]
