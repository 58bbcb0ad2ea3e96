"""Phantoms: a seeded, small look-alike of CT-RATE, with the same abnormalities in its volumes and its reports."""

from ctclip_model.data.phantom.dataset import (
    ANOMALIES,
    MARKER,
    VISIBLE_ABNORMALITIES,
    PhantomConfig,
    make_phantoms,
)

__all__ = ["ANOMALIES", "MARKER", "VISIBLE_ABNORMALITIES", "PhantomConfig", "make_phantoms"]
