from __future__ import annotations

import gc

import pytest

from tasks.run.collector import pausing_collector


def test_the_collector_rests_during_a_block_and_runs_afterwards():
    with pausing_collector():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_collector_runs_again_after_an_error():
    with pytest.raises(ValueError, match="inside"), pausing_collector():
        raise ValueError("inside")
    assert gc.isenabled()


def test_a_pause_within_a_pause_ends_with_the_outer_one():
    with pausing_collector():
        with pausing_collector():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_decorated_function_pauses_in_every_call():
    paused = pausing_collector()(gc.isenabled)
    assert [paused(), paused()] == [False, False]
    assert gc.isenabled()
