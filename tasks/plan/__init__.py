"""Answers to `ctclip plan`: the items that a rerun would make, and why."""
