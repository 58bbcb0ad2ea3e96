"""Chromium for the pages of this room."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from support.browser import Browser, open_browser

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("SKIPPED LOUDLY: there is no Chromium; `make test-browser` installs it")
    with open_browser(CHROMIUM) as running:
        yield running
