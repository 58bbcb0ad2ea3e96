"""Prefect's edge: one thin module for each stage, and the stage run around a flow run."""
