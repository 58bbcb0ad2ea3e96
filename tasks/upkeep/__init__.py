"""Upkeep of a data root: garbage collection, `doctor`, queries."""
