"""Ends with 0 if the address answers with a status below 400, and with 1 otherwise: `python deploy/health.py URL`."""

from __future__ import annotations

import sys
from urllib.request import urlopen

try:
    with urlopen(sys.argv[1], timeout=8):
        pass
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error}")
