"""Durations in words."""

import pytest

from tasks.run.progress import describe_duration


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0088, "8.8 ms"),
        (31.46, "31.5 s"),
        (59.96, "1 min 00 s"),
        (168.9, "2 min 49 s"),
        (3600, "1 h 00 min"),
        (1e6, "277 h 46 min"),
    ],
)
def test_durations_have_two_units(seconds, shown):
    assert describe_duration(seconds) == shown
