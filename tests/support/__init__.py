"""Builders and servers that tests share. A test file imports nothing else from `tests`."""
