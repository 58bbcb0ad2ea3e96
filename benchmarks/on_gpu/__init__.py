"""Sections of `gpu.py`."""
