"""Waits for a place that does not answer: told once, and ended by an interruption."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from tenacity import Retrying, stop_after_attempt, wait_fixed

from ctclip_model.errors import RemoteAccessError
from tasks.remote import waiting
from tasks.remote.waiting import ask_in_threads, telling

FOR_EVER_S = 1e6


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_told_at", {})


def fail(place: str, wait_s: float) -> None:
    retrying = Retrying(
        stop=stop_after_attempt(3), wait=wait_fixed(wait_s), sleep=lambda _: None, reraise=True,
        before_sleep=telling(place, 3, lambda error: f"no answer ({type(error).__name__})"),
    )  # fmt: skip
    with pytest.raises(OSError, match="a signature"):
        retrying(refuse)


def refuse() -> None:
    raise OSError("a signature")


def test_a_long_wait_is_told_once_a_minute_for_each_place_without_the_librarys_text(caplog):
    for place in ("s3://a", "s3://a", "s3://b"):
        fail(place, wait_s=8)
    fail("s3://c", wait_s=1)  # too short for a word
    assert caplog.messages == [
        f"{place}: no answer (OSError). It is asked again in 8 s, attempt 2 of 3" for place in ("s3://a", "s3://b")
    ]


def test_results_come_in_the_order_of_the_items():
    assert ask_in_threads(lambda item, sleep: 2 * item, range(20), 4) == [2 * item for item in range(20)]


def test_an_error_ends_the_waits_of_all_and_leaves_out_the_rest():
    begun: list[int] = []
    is_asleep = threading.Event()

    def ask(item: int, sleep: waiting.Sleep) -> None:
        begun.append(item)
        if item == 0:
            is_asleep.wait()
            raise RemoteAccessError("refused")
        is_asleep.set()
        sleep(FOR_EVER_S)

    with pytest.raises(RemoteAccessError, match="refused"):
        ask_in_threads(ask, range(100), 2)
    assert 99 not in begun


@pytest.fixture
def heeded_sigint() -> Iterator[None]:
    """The signal raises `KeyboardInterrupt`, also below a shell whose background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_sigint")
def test_ctrl_c_ends_the_waits_of_all():
    def ask(item: int, sleep: waiting.Sleep) -> None:
        if item == 0:
            os.kill(os.getpid(), signal.SIGINT)
        sleep(FOR_EVER_S)

    with pytest.raises(KeyboardInterrupt):
        ask_in_threads(ask, range(100), 2)
