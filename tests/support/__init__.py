"""Builders and servers that tests share. Test files import nothing else from `tests`."""
