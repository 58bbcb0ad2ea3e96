"""When Prefect will run what, asked of its server in one plain request: importing Prefect takes seconds."""

from __future__ import annotations

import base64
import json
import os
import urllib.request
from datetime import UTC, datetime
from typing import Any

TIMEOUT_S = 0.5
NO_NAMES = ("ctclip", "auto-scheduled")  # a deployment's other tag is its name


def next_runs() -> list[tuple[str, datetime]]:
    """The next scheduled run of each deployment of ours, soonest first; none where PREFECT_API_URL is not set.

    Raises `OSError` where the server does not answer in time, or refuses.
    """
    if not os.environ.get("PREFECT_API_URL"):
        return []
    asked = {
        "flow_runs": {"tags": {"all_": ["ctclip"]}, "state": {"type": {"any_": ["SCHEDULED"]}}},
        "sort": "EXPECTED_START_TIME_ASC", "limit": 200,
    }  # fmt: skip
    soonest: dict[str, datetime] = {}
    for run in ask_server("flow_runs/filter", asked):
        name = next((tag for tag in run["tags"] if tag not in NO_NAMES), run["name"])
        soonest.setdefault(name, datetime.fromisoformat(run["expected_start_time"]).astimezone(UTC))
    return sorted(soonest.items(), key=lambda pair: pair[1])


def ask_server(path: str, body: dict[str, Any]) -> Any:
    """The answer of the Prefect server to a POST. Raises `OSError`."""
    address = f"{os.environ['PREFECT_API_URL'].rstrip('/')}/{path}"
    request = urllib.request.Request(address, json.dumps(body).encode(), _headers(), method="POST")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return json.load(answer)


def _headers() -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    elif user := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    return headers
