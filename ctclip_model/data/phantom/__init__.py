"""Phantoms: a seeded, small look-alike of CT-RATE whose volumes and reports tell of the same abnormalities."""

from ctclip_model.data.phantom.dataset import (
    ANOMALIES,
    MARKER,
    VISIBLE_ABNORMALITIES,
    PhantomConfig,
    make_phantoms,
)

__all__ = ["ANOMALIES", "MARKER", "VISIBLE_ABNORMALITIES", "PhantomConfig", "make_phantoms"]
