"""When Prefect will run what, asked of its server in one plain request: importing Prefect takes seconds."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from datetime import UTC, datetime

TIMEOUT_S = 0.5


def next_runs() -> list[tuple[str, datetime]]:
    """The next scheduled run of each deployment of ours, soonest first; none where PREFECT_API_URL is not set.

    Raises `OSError` where the server does not answer in time, or refuses.
    """
    address = os.environ.get("PREFECT_API_URL")
    if not address:
        return []
    asked = {
        "flow_runs": {"tags": {"all_": ["ctclip"]}, "state": {"type": {"any_": ["SCHEDULED"]}}},
        "sort": "EXPECTED_START_TIME_ASC", "limit": 200,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{address.rstrip('/')}/flow_runs/filter", json.dumps(asked).encode(), _headers(), method="POST"
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        runs = json.load(answer)
    soonest: dict[str, datetime] = {}
    for run in runs:
        name = next((tag for tag in run["tags"] if tag != "ctclip"), run["name"])
        soonest.setdefault(name, datetime.fromisoformat(run["expected_start_time"]).astimezone(UTC))
    return sorted(soonest.items(), key=lambda pair: pair[1])


def _headers() -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    elif user := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    return headers
